"""What `bench train` runs in processes of their own."""
