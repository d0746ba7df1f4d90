"""The settings of a gateway as one file: reading it, telling what differs from it, and making it so."""
