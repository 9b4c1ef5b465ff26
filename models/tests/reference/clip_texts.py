"""Texts on which tokenizers are compared. On ORDINARY ones transformers' fast CLIP tokenizer and its older one (with
ftfy) agree; FAST_ONLY ones they read differently, for most of them because ftfy rewrites the text first."""

ORDINARY = [
    # plain prompts
    "a photo of a red cat", "A Photo Of A RED Cat", "cat", "an astronaut riding a horse on mars", "portrait of a woman, 35mm, f/1.8",
    "masterpiece, best quality, ultra-detailed, 8k wallpaper", "trending on artstation, by greg rutkowski and alphonse mucha",
    "low quality, bad anatomy, extra digits, cropped, worst quality, jpeg artifacts, signature, watermark",
    "cyberpunk city at night; neon lights; rain", "the quick brown fox jumps over the lazy dog", "THE QUICK BROWN FOX",
    "isometric 3D render of a tiny house -- octane", "black & white photograph", "pixel-art sprite sheet (16x16)", "steampunk/dieselpunk airship",
    "supercalifragilisticexpialidocious", "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis", "qwertyuiop asdfghjkl zxcvbnm",
    "x", "I", "a b c d e f g", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "hahahahaha", "CamelCaseWordsInARow", "snake_case_words_in_a_row",
    # contractions
    "it's", "don't we'll I'm you're he'd they've", "IT'S DON'T WE'LL I'M YOU'RE HE'D THEY'VE", "o'clock rock'n'roll y'all'd've",
    "'s 't 'll ' '' '''", "the cats' toys", "'tis the season", "dogs 'n' cats", "x's'y'll", "can't'nt", "'re're've",
    # digits
    "1234567890", "3.14159", "1,000,000 dollars", "2001: a space odyssey", "mp3 h264 r2d2 c3po", "1st 2nd 3rd 4th", "50% off", "10x10", "0", "007",
    "1990s style", "v1.5-pruned", "(a:1.2)", "16:9", "12:34:56", "1/2 3/4",
    # punctuation
    ".", "...", "....................", ",,,,", "!", "!!", "!!!!!", "wow! such prompt!! very art!!!", "what?!?!", "a,b;c:d.e", "a , b ; c : d . e",
    "((masterpiece)), [[blurry]], {curly}", "<lora:name:0.8>", "<html> </html>", "C:\\path\\to\\file", "/usr/local/bin", "user@example.com",
    "https://example.com/a?b=c&d=e#f", "#hashtag #art", "$100", "a+b=c", "a*b^c~d`e|f", "\"quoted\"", "--ar 16:9 --v 5", "___", "-_-", ":) :-) ;) xD <3",
    "\\", "\\(escaped\\)", "%s %d {} {0}", "@@@@", "~~~", "[a|b]", "a -> b => c", "BREAK", "a BREAK b",
    # spaces
    "", " ", "     ", "  leading", "trailing  ", "two  spaces   three", "tab\tseparated\ttext", "line\nbreak", "\n\n\n", "crlf\r\nline",
    "no\u00a0break", "em\u2003space", "a\u3000b", "\u2028",
    # accents and other scripts
    "café", "cafe\u0301", "Ångström", "A\u030angstro\u0308m", "naïve façade", "ÀÉÎÕÜ", "Straße", "Škoda Łódź Đorđe", "İstanbul ılık", "смерть в Венеции",
    "Ёлка", "Ελλάδα", "שלום עולם", "مرحبا بالعالم", "हिन्दी भाषा", "ภาษาไทย", "한국어", "日本語のテスト", "猫が好き", "漢字", "ㄅㄆㄇ", "ქართული", "Հայերեն", "አማርኛ",
    "tiếng Việt", "ñandú", "œuvre æther", "𝔊𝔬𝔱𝔥𝔦𝔠 𝕕𝕠𝕦𝕓𝕝𝕖", "𐍈𐌰",
    # emoji and symbols
    "😀", "😀😃😄", "a 🐱 and a 🐶", "👍🏽", "👨‍👩‍👧‍👦", "🇫🇷🇩🇪", "❤️ ❤", "☕︎", "🏳️‍🌈", "1️⃣", "→ ← ↑ ↓", "± × ÷ ≠ ≤ ∞", "€ £ ¥ ₹", "© ® ™", "α β γ", "½ ¼ ² ³ ⅷ ①", "♥♦♣♠", "★☆",
    "—dash – dash", "…", "«guillemets»", "•bullet", "a\u200bb", "a\u200db", "°C", "\U0001f9ff",
    # special tokens and length
    "<|endoftext|>", "a <|startoftext|> b<|endoftext|>c", "<|endoftext", "word " * 80, "a" * 400, "!" * 200, "9" * 100, "é" * 90, "ab, " * 100,
]

FAST_ONLY = [
    "“curly quotes” and ‘single’ ones", "don’t", "ﬁne ﬂower", "ＦＵＬＬ ｗｉｄｔｈ", "ﾊﾝｶｸ", "&amp; &lt;b&gt; &eacute;", "\x00\x01\x7f control", "\ufeffmark", "schÃ¶n", "a\u0085b",
    "ΣΊΣΥΦΟΣ", "<|ENDOFTEXT|>", "„low quotes", "中文提示词，一只猫", "v\x0bf\x0cx", "\x1b[31mred\x1b[0m", "‟odd‛",
]
