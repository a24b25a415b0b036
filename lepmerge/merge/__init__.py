"""Read a recipe, plan it, execute the plan, and write the model card."""
