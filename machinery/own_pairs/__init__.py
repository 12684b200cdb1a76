"""Pairs of one's own: prompts are answered several times, a judge scores the answers, and a model is trained in rounds.

Take `scored.score_answers` for what any judge makes of several answers. Uses answers/, comparing/, judges/, models/,
runs/ and common/.
"""
