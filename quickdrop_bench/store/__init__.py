"""What is kept on disk: trained federations and rows."""
