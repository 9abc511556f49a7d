"""Programs that people use with the server, each as its own documentation shows it, against `weblab-local serve`.

Not part of `make test`: `make test-clients` installs them and runs these. They are no extra of the project, and not in
its .venv, because they contradict each other and what it pins: no set of versions suits them all. So there are four
environments in build/clients, as whoever uses one of them has it, with the pins in requirements/, and one of Node. Only
the server runs on the project's own Python.
"""
