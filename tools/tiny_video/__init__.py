"""The small models of calibatt: their clips, captions, judge and training."""
