"""Data of the package: the catalog of models and the bundled vectors (``pyemo.files.catalog``)."""
