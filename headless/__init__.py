"""A training without ComfyUI's server, from the command line: what a run.json or a graph says.

command.py reads what is asked for; recipe.py, described.py and changes.py make a graph of it;
host.py, which alone knows ComfyUI here, runs that; look.py sees that files are what they were.
runs.py lists and tidies the runs that are there.
"""
