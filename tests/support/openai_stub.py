"""transformers behind as much of OpenAI's API as a judge's client asks: what vLLM answers, by another implementation."""

import base64
import io

import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil


class Stub:
    """Greedy answers of an exported judge, with the log-probabilities of OpenAI and of vLLM's prompt_logprobs."""

    def __init__(self, folder):
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer, self.images = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, request):
        body = await request.json()
        pictures = []
        messages = [self._message(message, pictures) for message in body["messages"]]
        goes_on = body.get("continue_final_message", False)
        how = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on, "tokenize": False}
        text = self.tokenizer.apply_chat_template(messages, **how)
        inputs = self.images(images=pictures, return_tensors="pt")
        counts = iter((inputs["image_grid_thw"].prod(-1) // self.images.merge_size**2).tolist())
        ids, image = self.tokenizer(text, add_special_tokens=False)["input_ids"], self.model.config.image_token_id
        ids = torch.tensor([[token for i in ids for token in [i] * (next(counts) if i == image else 1)]])
        inputs.update(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == image).int())
        with torch.inference_mode():
            if "prompt_logprobs" in body:
                logits = self.model(**inputs).logits[0].log_softmax(-1)
                said = [{str(int(t)): {"logprob": float(logits[at, t])}} for at, t in enumerate(ids[0, 1:])]
                return JSONResponse({"choices": [], "prompt_logprobs": [None, *said]})
            how = {"max_new_tokens": body["max_tokens"], "do_sample": False, "output_logits": True}
            out = self.model.generate(**inputs, **how, return_dict_in_generate=True)
        answer = out.sequences[0, ids.shape[1] :]
        content = [self._token(int(t), logits[0].log_softmax(-1), body) for t, logits in zip(answer, out.logits, strict=True)]
        if int(answer[-1]) in (self.tokenizer.eos_token_id, self.model.generation_config.eos_token_id):
            content = content[:-1]
        text = self.tokenizer.decode(answer, skip_special_tokens=True)
        return JSONResponse({"choices": [{"message": {"role": "assistant", "content": text}, "logprobs": {"content": content}}]})

    def _message(self, message, pictures):
        if isinstance(message["content"], str):
            return message
        parts = []
        for part in message["content"]:
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
                pictures.append(Image.open(io.BytesIO(data)).convert("RGB"))
                part = {"type": "image"}
            parts.append(part)
        return {"role": message["role"], "content": parts}

    def _token(self, token, logps, body):
        top = logps.topk(body["top_logprobs"])
        likely = [{"token": self.tokenizer.decode([int(i)]), "logprob": float(p)} for p, i in zip(*top, strict=True)]
        return {"token": self.tokenizer.decode([token]), "logprob": float(logps[token]), "top_logprobs": likely}
