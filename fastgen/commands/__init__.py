"""The commands of the command line, by what they are about; :mod:`fastgen.cli` puts them together.

A command says what it takes, calls the module that does it and prints the outcome; it decides nothing itself.
"""
