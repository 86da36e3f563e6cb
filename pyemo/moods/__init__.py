"""Typed words become a mood: vectors by name, strengths that were not given, and remarks."""
