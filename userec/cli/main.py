"""The door: `userec VERB`. One file a verb, imported when its verb is called, so that `userec --help` answers at once."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from userec.cli.output import exit_codes
from userec.errors import UserError, did_you_mean

VERBS: Final = {
    "run": ("userec.cli.run:run", "Train a model on a data set and evaluate it."),
    "list": ("userec.cli.list:print_list", "What is there: models, data sets, objectives, evaluators, kernels."),
    "show": ("userec.cli.show:show", "One of them whole: settings with types and defaults, what it offers, needs and reads."),
    "plugins": ("userec.cli.plugins:app", "The installed plugins: list, info, check."),
    "data": ("userec.cli.data:app", "Data sets: list, fetch, describe."),
    "kernels": ("userec.cli.kernels:print_kernels", "Which kernel serves which op here, and why not the others."),
    "doctor": ("userec.cli.doctor:doctor", "Look for what is wrong with this installation; exits 1 where something is."),
}
"""{verb: (object, one line)}; the object is a function that typer can read, or a typer application of several."""

_HELP: Final = {"help_option_names": ["-h", "--help"]}


class Door(TyperGroup):
    """The group of verbs. Turns errors into exit codes, and takes `-p no:NAME` wherever it stands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs, without importing one."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the verb. Raises UserError for an unknown one."""
        if cmd_name not in VERBS:
            raise UserError(f"unknown command {cmd_name!r}{did_you_mean(cmd_name, VERBS)}")
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        verb = getattr(importlib.import_module(module), attribute)
        if not isinstance(verb, typer.Typer):
            alone = typer.Typer(rich_markup_mode=None, add_completion=False)
            alone.command(cmd_name, context_settings=_HELP)(verb)
            verb = alone
        command = typer.main.get_command(verb)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The verbs with their lines, without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Bring every `-p no:NAME` to the front."""
        front: list[str] = []
        rest = list(args)
        end = rest.index("--") if "--" in rest else len(rest)
        for i in range(end - 2, -1, -1):
            if rest[i] == "-p" and rest[i + 1].startswith("no:"):
                front = [*rest[i : i + 2], *front]
                del rest[i : i + 2]
        return super().parse_args(ctx, [*front, *rest])

    def invoke(self, ctx: Any) -> Any:
        """Call the verb."""
        with exit_codes():
            return super().invoke(ctx)


app = typer.Typer(
    name="userec",
    cls=Door,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings=_HELP,
)


def _print_version(asked: bool) -> None:
    if asked:
        from userec.registry import core_version

        typer.echo(f"userec {core_version()}")
        raise typer.Exit


@app.callback()
def door(
    ctx: typer.Context,
    plugin: Annotated[
        list[str] | None, typer.Option("-p", metavar="no:NAME", help="Leave a plugin out, by entry point or distribution.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The plugin host of user modelling: data sets, models, objectives, evaluators and kernels are plugins, judged alike."""
    for word in plugin or ():
        if not word.startswith("no:") or word == "no:":
            raise UserError(f"-p {word!r} is not understood: `-p no:NAME` leaves the plugin NAME out")
    ctx.obj = tuple(word.removeprefix("no:") for word in plugin or ())


def main() -> None:
    """The console command `userec`."""
    app()


if __name__ == "__main__":
    main()
