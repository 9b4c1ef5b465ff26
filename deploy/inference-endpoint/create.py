#!/usr/bin/env python3
"""Makes an Inference Endpoint that runs Aquatint's image beside a model of the Hub. README.md beside this says more."""

import argparse
import json
import os
import sys

PORT = 7860


def request(options):
    """What huggingface_hub's create_inference_endpoint is called with."""
    variables = {"SD_MODEL_ID": "/repository", "PORT": str(PORT), "AQUATINT_HEALTH_UNTIL_READY": "1"}
    variables |= dict(pair.split("=", 1) for pair in options.env)
    return {
        "name": options.name,
        "repository": options.repository,
        "framework": "custom",
        "task": "text-to-image",
        "accelerator": "gpu",
        "vendor": options.vendor,
        "region": options.region,
        "instance_type": options.instance_type,
        "instance_size": options.instance_size,
        "min_replica": options.min_replica,
        "max_replica": options.max_replica,
        "scale_to_zero_timeout": 15,
        "custom_image": {"url": options.image, "port": PORT, "healthRoute": "/health"},
        "env": variables,
        "secrets": {name: os.environ[name] for name in options.secret},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--image", required=True, help="built from Dockerfile.cuda and pushed")
    parser.add_argument("--repository", required=True, help="the model on the Hub")
    parser.add_argument("--vendor", default="aws")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--instance-type", default="nvidia-a10g")
    parser.add_argument("--instance-size", default="x1")
    parser.add_argument("--min-replica", type=int, default=0)
    parser.add_argument("--max-replica", type=int, default=1)
    parser.add_argument("--env", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--secret", metavar="NAME", action="append", default=[], help="taken from the environment")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()

    missing = [name for name in options.secret if name not in os.environ]
    if missing:
        sys.exit(f"create.py: not in the environment: {', '.join(missing)}")
    arguments = request(options)
    if options.dry_run:
        arguments["secrets"] = {name: "(secret)" for name in options.secret}
        print(json.dumps(arguments, indent=2))
        return

    from huggingface_hub import create_inference_endpoint

    endpoint = create_inference_endpoint(**arguments).wait(timeout=1800)
    picture = endpoint.client.text_to_image("a red apple")
    picture.save("apple.png")
    print(f"{endpoint.url}: the first picture is in apple.png")


if __name__ == "__main__":
    main()
