"""Where a fine-tuned skill lives: few parameters (grafting), or few heads (LoFiT)."""
