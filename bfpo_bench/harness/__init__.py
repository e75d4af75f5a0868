"""The only package that imports lm_eval (0.4.13): tasks -> samples (`prompts`), models -> outputs (the rest).

prompts.py    an lm-eval task's documents as Samples, before any model is there
engine.py     ModelSpec -> Engine; what the engines share
rendering.py  Sample -> the text that is sent: system prompt, chat template
hf.py         lm-eval's HFLM, batched, with finish reasons
lora.py       what vLLM must be told of an adapter
vllm.py       lm-eval's VLLM, answers as they finish
choice.py     choices as tokens, and the cheapest requests from whose answers they can be added up
vllm_choice.py  those requests on vLLM, in place of lm-eval's long one a choice
openai.py     lm-eval's OpenAI-compatible classes over our one client
policy.py     answers by a fixed rule: the controls
process.py    an Engine in a process group of its own that cannot outlive its driver
"""
