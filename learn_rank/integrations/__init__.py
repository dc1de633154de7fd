"""LEARN in rankers of other libraries: one thin file per host, which imports it where it is used."""
