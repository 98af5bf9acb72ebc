"""The study's database: connections, tables, migrations, events and signed keys."""
