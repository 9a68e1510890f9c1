"""Records to tokens: one encoder per kind of training, with one shape.

================  ==================================  ========================================================
encoder           reads                               gives
================  ==================================  ========================================================
ResponseEncoder   a prompt and its judged responses   prompt tokens, and tokens with a mask per response
TurnEncoder       a text or conversation to imitate   one sequence of tokens with a mask
PromptEncoder     a prompt to answer                  tokens that a first response token can follow
================  ==================================  ========================================================

Each has ``render`` (a record to texts), ``encode`` (the texts of a step to tokens, in one call of the tokenizer) and
``fit`` (checks, and the cut to the length limit).

1. A tokenizer is told to add nothing by itself: what it would put before a text is added by us, unless the text spells
   it out already; the end-of-sequence token after a response likewise. So neither is ever doubled.
2. A chat template writes all special tokens of a conversation.
3. A special token spelled out inside a message (``"<|im_end|>"`` typed by a user) stays plain text and cannot end a
   turn. In text rows it is parsed, so that prompts rendered beforehand keep their meaning.
4. What is scored is decided by position, never by token id, so ``pad == eos`` and ``bos == eos`` are harmless.
"""
