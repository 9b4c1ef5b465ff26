"""Texts on which T5 tokenizers are compared, beside those of clip_texts.py."""

MORE = [
    # special tokens in the text
    "</s>", "a </s> b", "a</s>b", "<pad>", "<pad> x", "<unk>", "a <unk> b", "<extra_id_0>", "a <extra_id_0> b", "a<extra_id_99>b", "<extra_id_100>",
    "  <extra_id_5>  ", "< /s>", "</S>", "<s>", "<0x0A>", "<bos><eos>",
    # the mark that stands for a space
    "\u2581", "a\u2581b", "\u2581\u2581", " \u2581 ", "\u2581leading", "trailing\u2581", "_", "__a__",
    # spaces of all kinds
    " a", "a ", "a  ", "  a  b  ", "a\t\tb", "\ta", "a\t", "a\n\nb", "\n a", "a \n", "a\r\n\r\nb", "a\u00a0\u00a0b", "a\u2002b\u2003c\u2009d", "a\u3000\u3000b", "\u3000",
    "a\u202fb", "a\u205fb", "a\u1680b", "a\u2028b\u2029c", "a\u000bb\u000cc", "\u200b", "a\u200b \u200bb", "\u2060a", "x" + " " * 50 + "y", " " * 300, "\n" * 40, "a \u00a0 b",
    # control characters
    "\x00", "a\x00b", "\x00\x00a", "\x01\x02\x03", "a\x7fb", "a\x80b", "a\x9fb", "\x1f", "\x0e leading", "a\u00adb", "\u00ad", "\ufeff", "\ufeffa", "\ufffd", "a\ufffdb", "\ufffe",
    "\u200e left \u200f right", "\u202eright to left\u202c", "\u2066isolate\u2069",
    # compatibility forms
    "ＦＬＵＸ．１", "ｆｕｌｌ　ｗｉｄｔｈ　ｓｐａｃｅ", "１２３４５", "！？", "（ａ：１．２）", "ﬀ ﬁ ﬂ ﬃ ﬄ", "ⅠⅡⅢ ⅳ", "①②③", "㎏ ㎡ ㍿", "½ cup", "x² + y³", "H₂O", "™ ℠ ℃", "Ĳ ǆ", "ſ", "㌔㍍", "ﷺ",
    # combining characters
    "e\u0301", "n\u0303o", "a\u0300\u0301\u0302\u0303", "\u0301", "o\u0308 \u00f6", "Z\u0351\u036b\u0343a\u0328l\u034ago", "\u1112\u1161\u11ab", "\u0915\u094d\u0937", "\u0e01\u0e33",
    # emoji
    "🐈", "a cat 🐈 on a mat", "🧑🏿‍🚀", "👩‍❤️‍💋‍👨", "🇺🇦", "#️⃣*️⃣", "🫠🫡", "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "❤️‍🔥", "🙂" * 30,
    # scripts
    "ein Foto einer roten Katze", "une photo d'un chat rouge", "o fotografie cu o pisică roșie", "Kraftfahrzeughaftpflichtversicherung", "l’été à Besançon", "Bună ziua, țară",
    "一张红猫的照片", "赤い猫の写真", "빨간 고양이 사진", "фото красной кошки", "صورة قطة حمراء", "תמונה של חתול אדום", "लाल बिल्ली", "𠮷野家", "𝒜𝓃 𝕖𝕝𝕖𝕘𝕒𝕟𝕥", "ᚠᚢᚦ", "𒀀𒁀",
    # captions, as FLUX gets them
    "A cinematic photograph of a lighthouse on a rocky coast at dusk; waves break against the cliffs, spray in the air. 35mm film, f/2.8, Kodak Portra 400.",
    'A hand-painted sign that reads "OPEN 24/7", hanging above the door of a small diner, neon reflections on wet asphalt.',
    "The image shows: (1) a red cube, (2) a blue sphere - left of it - and (3) a green cone.", "a photo of a red cat", "a (red:1.2) cat, [blurry], ((sharp))",
    "Tom & Jerry's #1 fan @ 50% off!!!", "C++ > C# && Rust != Go", "3,000.50€ / 2'000.- CHF", "e=mc^2; E=mc²", "{\"json\": [1, 2, null]}", "a\\nb", "tHe QuIcK bRoWn FoX", "naïve café résumé",
    # length
    "cat " * 300, "cat, " * 600, "supercalifragilistic" * 40, "猫" * 300, "z" * 2000, "é" * 600, ". " * 500, "1" * 700, "word\n" * 200,
]
