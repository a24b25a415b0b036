"""YAML files: trees with `extends` and variables, strict schemas, shared entries."""
