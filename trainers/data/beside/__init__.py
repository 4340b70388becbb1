"""What lies beside a picture and trains with it: its mask, its control images, and its caption
where a model is to write it.
"""
