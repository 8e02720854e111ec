"""The default model of calibatt: its clips, captions, judge and training."""
