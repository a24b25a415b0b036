"""Recipe, plan, execution, model card."""
