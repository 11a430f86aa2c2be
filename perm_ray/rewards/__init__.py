"""Judgments to rewards, rewards to advantages: plain arithmetic, no torch, no Ray."""
