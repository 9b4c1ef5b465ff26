"""A CLIP tokenizer of a few thousand words, in the published format and rules, made from the captions.

    python tokenizer.py --data emoji128 --run run

The published vocabulary has 49,408 entries, most of which no caption holds; embedding them would cost 14 MB.
"""
import argparse
import json
import os
import random

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

import pictures

VOCABULARY = 3000
LENGTH = 32  # tokens a prompt, begin and end included
RULE = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's own split
WORDS = '''a an the of and in on with two three style background picture emoji drawing photo small big cute happy sad simple
white black red orange yellow green blue purple pink brown grey gray 3d flat cartoon duotone'''.split()


def corpus(folder):
    rows, pixels = pictures.load(folder)
    pick = random.Random(0)
    for row in rows:
        yield row['name']
        yield ' '.join(row['keywords'])
    drawn = pictures.drawn(rows)
    for i in drawn * 4:
        yield pictures.caption(rows[i], pick)
    for names in pictures.ALSO.values():
        yield from names * 20
    yield from WORDS * 200


def main(a):
    trained = Tokenizer(models.BPE(end_of_word_suffix='</w>'))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(RULE), 'removed', invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    letters = list(bytes_to_unicode().values())
    merges = VOCABULARY - 2 * len(letters) - 2
    trained.train_from_iterator(corpus(a.data), trainers.BpeTrainer(
        vocab_size=VOCABULARY + 400, end_of_word_suffix='</w>', initial_alphabet=letters, show_progress=False))
    found = [m if isinstance(m, list) else m.split(' ') for m in json.loads(trained.to_str())['model']['merges']][:merges]
    # CLIP's order: letters, letters that end a word, merged pieces, the two marks.
    tokens = letters + [c + '</w>' for c in letters] + [''.join(m) for m in found] + ['<|startoftext|>', '<|endoftext|>']
    assert len(set(tokens)) == len(tokens) == VOCABULARY, (len(set(tokens)), len(tokens))
    texts = set(corpus(a.data))
    for name, pad in (('tokenizer', '<|endoftext|>'), ('tokenizer_2', '!')):
        folder = os.path.join(a.run, name)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, 'vocab.json'), 'w') as f:
            json.dump({t: i for i, t in enumerate(tokens)}, f, ensure_ascii=False, separators=(',', ':'))
        with open(os.path.join(folder, 'merges.txt'), 'w') as f:
            f.write('#version: 0.2\n' + ''.join(f'{x} {y}\n' for x, y in found))
        CLIPTokenizer(os.path.join(folder, 'vocab.json'), os.path.join(folder, 'merges.txt'), pad_token=pad,
                      model_max_length=LENGTH).save_pretrained(folder)
        check = CLIPTokenizer.from_pretrained(folder)
        assert check.pad_token_id == (0 if pad == '!' else VOCABULARY - 1)
        longest = max((len(check(t).input_ids), t) for t in texts)
        print(name, [check.decode([i]) for i in check('a 3d strawberry, flat, red xylophone').input_ids], 'longest', longest)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', required=True)
    p.add_argument('--run', required=True)
    main(p.parse_args())
