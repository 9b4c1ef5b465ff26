"""What schemathesis is told about this server: which answers are wrong, and how to keep its requests small."""

import schemathesis

# Sizes and counts that are allowed, and cost time; the bounds themselves are tried in tests/it.
SMALL = {
    "steps": 2, "num_inference_steps": 2, "num_images": 1, "numImages": 1, "n": 1, "width": 64, "height": 64,
    "batch_size": 1, "n_iter": 1,
}
ALLOWED = 4096


def shrink(value):
    if isinstance(value, dict):
        return {
            key: min(inner, SMALL[key]) if key in SMALL and type(inner) is int and 0 < inner <= ALLOWED else shrink(inner)
            for key, inner in value.items()
        }
    return [shrink(inner) for inner in value] if isinstance(value, list) else value


@schemathesis.hook
def map_body(context, body):
    return shrink(body)


@schemathesis.check
def no_internal_error(ctx, response, case):
    assert response.status_code != 500, f"500: {response.text[:300]}"
