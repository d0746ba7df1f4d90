"""What every part of the management API is made of, and its views of tenants and of the audit."""
