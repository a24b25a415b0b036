"""lepmerge import: the recipe that a configuration of mergekit means."""

from pathlib import Path

import click

from lepmerge.commands.console import print_json
from lepmerge.commands.options import json_option


@click.command("import")
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", default="merged", show_default=True, help="Folder of the result, for `output.path`.")
@json_option
def import_(config: str, output: str, as_json: bool) -> None:
    """Print the recipe that a mergekit configuration means.

    \b
    Example:
      lepmerge import mergekit.yaml --output out/my-model > recipe.yaml
    """
    from lepmerge.merge.mergekit import recipe_of_mergekit

    recipe = recipe_of_mergekit(Path(config), output).to_yaml()
    if as_json:
        import yaml

        print_json({"recipe": yaml.safe_load(recipe)})
    else:
        click.echo(recipe, nl=False)
