"""The command line: TRL's parser with recipes, help that matters, defaults in layers, refusals before any work.

Take `command_line.CommandLine` for a parser whose defaults may depend on what the user said. Uses common/, models/,
hardware/, runs/ and training/.
"""
