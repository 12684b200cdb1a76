"""What a person sees of a training, and is told when it goes wrong.

Take `watcher.Watcher` for the warnings (`faults.FAULTS` has their words), `log_lines.show_log_lines` for short lines,
`curves.plot_training` for the picture. Uses no other room.
"""
