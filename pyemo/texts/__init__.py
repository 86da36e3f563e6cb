"""Every text that ships, as checked values; the texts themselves are data of ``extract/data``."""
