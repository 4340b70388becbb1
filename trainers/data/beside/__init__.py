"""What lies beside a picture and trains with it: its mask and its control images."""
