"""The device check: does this file with this vector run here, fast, small and coherently enough?"""
