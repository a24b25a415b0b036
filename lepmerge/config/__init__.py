"""Read YAML files: trees with `extends` and variables, strict schemas, and entries that several schemas share."""
