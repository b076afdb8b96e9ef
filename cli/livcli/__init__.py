"""The command lines `livprep` and `livtrain`; the only users of click and rich."""
