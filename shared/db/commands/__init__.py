"""Commands that outgrew cli.py, one module each: arguments in, words and an exit code out."""
