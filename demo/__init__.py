"""The page: layout and handlers. Everything that it knows about models is in `demo.models`."""
