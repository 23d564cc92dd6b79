"""The papers' tables and figures: which runs they need, a sweep that lasts, and what came out beside what was published."""
