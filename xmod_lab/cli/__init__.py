"""What all commands share: Hydra around a function, one message for bad input, exit status."""

from xmod_lab.cli.command import Hooks, given_keys, hide_bars, run_command, run_function

__all__ = ["Hooks", "given_keys", "hide_bars", "run_command", "run_function"]
