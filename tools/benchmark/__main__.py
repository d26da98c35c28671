"""Measures what LORA and LORA-V cost.

    python -m tools.benchmark network --threads 2 --size 224 448 --output docs/benchmarks/sizes.json
    python -m tools.benchmark plot docs/benchmarks/sizes.json --plot docs/benchmark.png

`python -m tools.benchmark COMMAND --help` describes each command. Each but plot prints Markdown tables and writes its
figures as JSON. Rows are timed in turns; medians and quartiles are given.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.surroundings import begin

if __name__ == "__main__":
    begin()

from tools.benchmark import exported, loader, logsumexp, network, plot, runs
from tools.benchmark.measure import machine, write_results
from tools.start import start
from utils import UserError

COMMANDS = {"network": network, "loader": loader, "run": runs, "onnx": exported, "logsumexp": logsumexp}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, 2 after a mistake in flags or files, or 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(arguments)
    try:
        if options.command == "plot":
            plot.run(options)
        elif measured := COMMANDS[options.command].run(options):
            facts, results = measured
            command = shlex.join(["python", "-m", "tools.benchmark", *arguments])
            device = getattr(options, "device", "cpu")
            facts = {"benchmark": options.command, "command": command, **machine(device), **facts}
            if options.output:
                write_results(options.output, facts, results)
            print(plot.TABLES[options.command](facts, results))
    except UserError as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in {**COMMANDS, "plot": plot}.items():
        summary = module.__doc__.partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__, formatter_class=form)
        module.add_flags(command)
        if module is not plot:
            command.add_argument("--output", type=Path, metavar="FILE", help="JSON file for the figures")
    return parser


if __name__ == "__main__":
    start(main)
