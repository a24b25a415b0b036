"""lepmerge import: the recipe that a configuration of mergekit means."""

from pathlib import Path

import click


@click.command("import")
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", default="merged", show_default=True, help="Folder of the result, for `output.path`.")
def import_(config: str, output: str) -> None:
    """Print the recipe that a mergekit configuration means.

    \b
    Example:
      lepmerge import mergekit.yaml --output out/my-model > recipe.yaml
    """
    from lepmerge.merge.mergekit import recipe_of_mergekit

    click.echo(recipe_of_mergekit(Path(config), output).to_yaml(), nl=False)
