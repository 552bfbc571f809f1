"""Conversations: a prompt with the turns before it, and the servers that a chat is had with.

Whatever asks a language model elsewhere (a judge, a teacher) imports from here.
"""
