"""What algorithms share that do many things at once, in threads or in processes."""
