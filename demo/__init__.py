"""The page: layout and handlers. Everything that it knows of models is in `demo.models`."""
