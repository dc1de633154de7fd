"""Networks over all features of a row, a file each. A new one: such a file, and its line in `options.BACKBONES`."""
