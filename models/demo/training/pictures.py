"""The pictures and what is said of them: which emoji are drawn, made-up scenes, captions.

Reads the folder made by `prepare/`: `captions.jsonl` and `pictures.tar` (128 x 128 px on white).
"""
import io
import json
import os
import random
import tarfile

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

SIZE = 128
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')

# Three of the six styles: the two fluent sets share one drawing, so the denoiser sees each shape more often. The
# others (classic, simple, glossy) are left to the VAE, the probe and the style LoRA.
STYLES = {'3d': 1.0, 'flat': 1.0, 'cartoon': 0.8}

WHOLE_GROUPS = (
    'food-', 'drink', 'animal-', 'plant-', 'cat-face', 'heart', 'geometric', 'face-smiling', 'face-costume', 'face-glasses',
    'face-affection', 'musical-instrument', 'lock', 'time', 'transport-water')
FROM_OTHERS = '''
monkey: see-no-evil monkey
faces: crying face; loudly crying face; angry face; enraged face; sleeping face; face with tongue; thinking face;
    cowboy hat face; partying face; skull; smiling face with horns; nauseated face; cold face; hot face;
    face screaming in fear; neutral face; face with medical mask; zipper-mouth face; frowning face; winking face with tongue
people: baby; boy; girl; man; woman; santa claus; princess; mermaid; astronaut; fairy
hands: thumbs up; thumbs down; ok hand; victory hand; waving hand; raised fist; clapping hands; folded hands
body: eye; eyes; ear; nose; mouth; tongue; tooth; bone; brain; flexed biceps
ground: ambulance; articulated lorry; automobile; bicycle; bullet train; bus; delivery truck; fire engine; kick scooter;
    locomotive; motor scooter; motorcycle; pickup truck; police car; racing car; skateboard; sport utility vehicle; taxi;
    tractor; train; stop sign; vertical traffic light; wheel; roller skate; fuel pump
air: airplane; flying saucer; helicopter; parachute; rocket; satellite; small airplane
sky: cloud; cloud with lightning; cloud with rain; cloud with snow; comet; crescent moon; droplet; fire; full moon;
    glowing star; high voltage; rainbow; ringed planet; shooting star; snowflake; snowman; star; sun; sun with face;
    sun behind cloud; tornado; umbrella; water wave; full moon face
place: castle; house; house with garden; school; tent; circus tent; ferris wheel; volcano; snow-capped mountain;
    desert island; beach with umbrella; globe showing europe-africa; globe showing americas; statue of liberty; church;
    hospital; rock; wood; brick; compass; mount fuji; sunrise over mountains
event: balloon; christmas tree; fireworks; jack-o-lantern; party popper; ribbon; wrapped gift; sparkles; ticket
sport: american football; baseball; basketball; soccer ball; tennis; volleyball; bowling; boxing glove; fishing pole;
    ice skate; skis; sled; rugby football; flying disc
clothing: backpack; crown; dress; gem stone; glasses; gloves; goggles; graduation cap; handbag; high-heeled shoe; jeans;
    lipstick; necktie; purse; ring; running shoe; scarf; shorts; socks; sunglasses; t-shirt; thong sandal; top hat;
    billed cap; coat; bikini; hiking boot; shopping bags; kimono; woman's hat
game: bullseye; crystal ball; game die; joystick; kite; magic wand; pool 8 ball; puzzle piece; teddy bear; video game;
    water pistol; yo-yo
medal: trophy; sports medal; 1st place medal
home: basket; bathtub; bed; broom; bucket; chair; couch and lamp; door; mirror; soap; toilet; toothbrush; window;
    fire extinguisher; bubbles; shopping cart; sponge
light: camera; candle; flashlight; light bulb; magnifying glass tilted left; television; movie camera; red paper lantern
tools: axe; balance scale; bomb; boomerang; bow and arrow; crossed swords; dagger; gear; hammer; magnet; screwdriver;
    shield; shovel; wrench; toolbox; ladder; carpentry saw; hook; nut and bolt
paper: books; open book; newspaper; scroll; envelope; package; blue book; green book; memo; notebook; love letter
office: briefcase; scissors; paperclip; pushpin; calendar; file folder; wastebasket; clipboard
writing: pencil; pen; crayon; paintbrush; fountain pen
devices: laptop; desktop computer; mobile phone; telephone; keyboard; computer mouse; battery; floppy disk; printer; radio;
    headphone; microphone; musical note; musical notes; speaker high volume; bell; megaphone; satellite antenna;
    telescope; microscope; test tube; dna; syringe; pill; stethoscope; drop of blood; adhesive bandage
dishes: fork and knife; spoon; kitchen knife; jar; amphora
money: coin; money bag; credit card; treasure chest; dollar banknote
signs: check mark button; cross mark; recycling symbol; no entry; warning; prohibited; radioactive; speech balloon;
    thought balloon; collision; hundred points; zzz; sparkle; artist palette; framed picture; yarn; moai; nazar amulet;
    pirate flag; rainbow flag; chequered flag; white flag; triangular flag; luggage; anchor
'''
# What the sets call otherwise than people do. The first word stays: these are said as often as the name.
ALSO = {
    'red apple': ['apple', 'red apple'], 'pizza': ['slice of pizza', 'pizza slice'], 'automobile': ['car', 'red car'],
    'sport utility vehicle': ['blue car', 'suv'], 'deciduous tree': ['tree', 'green tree'], 'evergreen tree': ['pine tree', 'fir tree'],
    'doughnut': ['donut'], 'hot beverage': ['cup of coffee', 'coffee', 'cup of tea'], 'crescent moon': ['moon'],
    'star': ['yellow star'], 'soccer ball': ['football'], 'wrapped gift': ['gift', 'present'], 'honeybee': ['bee'],
    'lady beetle': ['ladybug', 'ladybird'], 'airplane': ['plane'], 'french fries': ['fries'], 'hamburger': ['burger', 'cheeseburger'],
    'fire engine': ['fire truck'], 'delivery truck': ['truck'], 'mobile phone': ['phone', 'smartphone'], 'sailboat': ['boat'],
    'couch and lamp': ['sofa', 'couch'], 'locomotive': ['steam train'], 'birthday cake': ['cake'], 'ear of corn': ['corn'],
    'ringed planet': ['planet', 'saturn'], 'running shoe': ['shoe', 'sneaker'], 'billed cap': ['cap'], 'top hat': ['hat'],
    'magnifying glass tilted left': ['magnifying glass'], 'pile of poo': ['poo'], 'flying saucer': ['ufo'], 'jack-o-lantern': ['halloween pumpkin', 'pumpkin'],
    'game die': ['dice', 'die'], 'gem stone': ['diamond', 'gem'], 'television': ['tv'], 'videocassette': ['tape'],
    'glass of milk': ['milk'], 'beer mug': ['beer'], 'wine glass': ['glass of wine', 'wine'], 'cocktail glass': ['cocktail'],
    'fire': ['flame'], 'droplet': ['water drop'], 'high voltage': ['lightning bolt', 'lightning'], 'cheese wedge': ['cheese'],
    'poultry leg': ['chicken leg'], 'cut of meat': ['steak'], 'egg': ['white egg'], 'cooking': ['fried egg'], 'ice cream': ['bowl of ice cream'],
    'soft ice cream': ['ice cream cone'], 'pig face': ['pig head'], 'grinning face': ['happy face', 'smiley'], 'crying face': ['sad face'],
    'smiling face with heart-eyes': ['face in love'], 'enraged face': ['red angry face'], 'smiling face with sunglasses': ['cool face'],
    'alarm clock': ['clock'], 'mantelpiece clock': ['old clock'], 'hot pepper': ['chili pepper', 'red pepper'], 'artist palette': ['palette'],
    'snow-capped mountain': ['mountain'], 'musical keyboard': ['piano'], 'vertical traffic light': ['traffic light'], 'sauropod': ['dinosaur'],
    't-rex': ['green dinosaur'], 'front-facing baby chick': ['chick'], 'gear': ['cogwheel'], 'necktie': ['tie'], 'wastebasket': ['trash can'],
    'globe showing europe-africa': ['earth', 'globe'], 'person with crown': ['king'], 'mouse face': ['mouse head'], 'sun': ['yellow sun'],
    'glasses': ['eyeglasses'], 'thong sandal': ['sandal'], 'handbag': ['bag'], 'package': ['box', 'cardboard box'], 'ghost': ['white ghost'],
    'headphone': ['headphones'], 'sports medal': ['medal'], 'money bag': ['bag of money'], 'red paper lantern': ['lantern'],
    'bullseye': ['target', 'dart board'], 'tangerine': ['orange'], 'brown mushroom': ['champignon'], 'leafy green': ['lettuce', 'salad'],
    'sunflower': ['yellow flower'], 'hibiscus': ['pink flower'], 'blossom': ['flower'], 'watermelon': ['slice of watermelon'],
    'unicorn': ['unicorn head'], 'lion': ['lion face', 'lion head'], 'panda': ['panda face'], 'fox': ['fox face'], 'bear': ['bear face'],
    'koala': ['koala face'], 'frog': ['frog face', 'green frog'], 'wolf': ['wolf face'], 'locked': ['lock', 'padlock'], 'shortcake': ['slice of cake'],
}

# With the above, what people ask for first; the probe names 40 of these (`probe.py`).
COMMON = set('''strawberry banana lemon grapes cherries peach pear pineapple carrot broccoli eggplant avocado tomato mushroom bread croissant
sandwich cookie cupcake candy lollipop cat dog cow pig horse rabbit mouse elephant giraffe monkey tiger penguin owl duck chicken bird fish
octopus whale dolphin shark crab turtle snake butterfly snail spider bee rose tulip cactus bicycle bus taxi motorcycle tractor train rocket
helicopter house castle tent umbrella rainbow cloud snowman snowflake volcano balloon basketball tennis guitar violin drum trumpet key bomb
hammer scissors pencil book books crown ring dress socks skull robot alien camera candle clock laptop bell trophy envelope anchor'''.split()) | set(
    '''green apple;cat face;dog face;tiger face;monkey face;rabbit face;cow face;hot dog;red heart;blue heart;green heart;purple heart;
yellow heart;palm tree;four leaf clover;light bulb;teddy bear;clown face;polar bear;racing car;police car;tropical fish;
face with tongue;winking face;sleeping face;angry face;thinking face;smiling face with horns;santa claus;christmas tree;bell pepper'''.replace('\n', '').split(';'))

COLOURS = {'red': 0.0, 'orange': 0.083, 'yellow': 0.14, 'green': 0.33, 'blue': 0.6, 'purple': 0.76, 'pink': 0.9}
BACKGROUNDS = {
    'red': (238, 90, 80), 'orange': (255, 178, 90), 'yellow': (255, 232, 120), 'green': (140, 214, 140), 'blue': (120, 180, 250),
    'purple': (190, 150, 240), 'pink': (255, 180, 215), 'grey': (190, 190, 190), 'black': (30, 30, 34)}


def load(folder):
    """Rows of `captions.jsonl` and their pictures as uint8 `(N, 3, 128, 128)`."""
    rows = [json.loads(line) for line in open(os.path.join(folder, 'captions.jsonl'))]
    at = {row['file']: i for i, row in enumerate(rows)}
    pixels = np.empty((len(rows), SIZE, SIZE, 3), np.uint8)
    with tarfile.open(os.path.join(folder, 'pictures.tar')) as tar:
        for member in tar:
            picture = Image.open(io.BytesIO(tar.extractfile(member).read())).convert('RGB')
            pixels[at[member.name]] = np.asarray(picture)
    return rows, torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def wanted_names():
    """Names picked one by one from groups that are not taken whole: `title: name; name; ...`, lines may go on."""
    names = set()
    for line in FROM_OTHERS.strip().split('\n'):
        names |= {name.strip() for name in line.split(':')[-1].split(';')}
    return names - {''}


def drawn(rows):
    """Indices of the pictures the denoiser learns."""
    names = wanted_names()
    return [i for i, row in enumerate(rows) if row['style'] in STYLES
            and (row['group'].startswith(WHOLE_GROUPS) or row['name'] in names)]


def unit(pixels):
    """uint8 to [-1, 1], on the device that computes."""
    return pixels.to(DEVICE).float() / 127.5 - 1


# ---- made-up scenes --------------------------------------------------------------------------------------------

def ground_mask(picture):
    """The white around the thing: near-white and joined to the border. `(128, 128)` bool."""
    white = (picture >= 248).all(0)
    labels, _ = ndimage.label(white)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return np.isin(labels, border[border > 0])


def on_ground(picture, colour):
    """The thing on a coloured ground; its antialiased rim is multiplied by the colour."""
    mask = ground_mask(picture)
    rim = ndimage.binary_dilation(mask, iterations=2)
    tinted = picture * (np.asarray(colour, np.float32) / 255).reshape(3, 1, 1)
    return np.where(rim, tinted, picture).astype(np.uint8)


def recoloured(picture, hue):
    """The same thing in another colour: the strongest hue is turned to `hue`, neighbours with it."""
    hsv = np.asarray(Image.fromarray(picture.transpose(1, 2, 0)).convert('HSV')).astype(np.int32)
    strong = hsv[..., 1] > 90
    counts = np.bincount(hsv[..., 0][strong] // 8, minlength=32)
    main = int(counts.argmax()) * 8 + 4
    near = strong & (np.abs((hsv[..., 0] - main + 128) % 256 - 128) < 28)
    hsv[..., 0] = np.where(near, (hsv[..., 0] - main + int(hue * 255)) % 256, hsv[..., 0])
    return np.asarray(Image.fromarray(hsv.astype(np.uint8), 'HSV').convert('RGB')).transpose(2, 0, 1)


def beside(pictures, places, side):
    """Things reduced to `side` px at `places` (x, y) on white."""
    canvas = Image.new('RGB', (SIZE, SIZE), 'white')
    for picture, place in zip(pictures, places):
        small = Image.fromarray(picture.transpose(1, 2, 0)).resize((side, side), Image.LANCZOS)
        canvas.paste(small, place)
    return np.asarray(canvas).transpose(2, 0, 1)


def plural(name):
    if name.endswith(('s', 'x', 'ch', 'sh')):
        return name + 'es'
    return name[:-1] + 'ies' if name.endswith('y') and name[-2] not in 'aeiou' else name + 's'


COUNTS = {'two': ([(0, 32), (64, 32)], 62), 'three': ([(2, 2), (64, 2), (33, 64)], 62)}
SCENE_GROUPS = ('food', 'drink', 'animal', 'plant', 'heart', 'cat-face', 'face', 'transport', 'sport', 'geometric', 'clothing', 'sky', 'event')


def scenes(rows, pixels, indices, seed=3):
    """Pictures made from pictures: `(pixels, rows)`; a row has `scene` (the words) and `style`."""
    pick = random.Random(seed)
    pixels = pixels.numpy()
    pool = [i for i in indices if rows[i]['group'].startswith(SCENE_GROUPS) and ' with ' not in rows[i]['name']]
    by_style = {s: [i for i in pool if rows[i]['style'] == s] for s in STYLES}
    out, words = [], []

    def add(picture, text, style):
        out.append(picture)
        words.append(dict(scene=text, style=style))

    for _ in range(1000):
        i = pick.choice(pool)
        colour = pick.choice(list(BACKGROUNDS))
        add(on_ground(pixels[i], BACKGROUNDS[colour]), (name_of(rows[i], pick), f'on a {colour} background'), rows[i]['style'])
    coloured = [i for i in pool if rows[i].get('colour') in COLOURS or any(c in rows[i]['name'].split() for c in COLOURS)]
    for _ in range(900):
        i = pick.choice(coloured)
        name = ' '.join(w for w in rows[i]['name'].split() if w not in COLOURS)
        others = ALSO.get(rows[i]['name'], [])
        if others and pick.random() < 0.5:
            name = ' '.join(w for w in pick.choice(others).split() if w not in COLOURS)
        own = rows[i].get('colour') or next(c for c in COLOURS if c in rows[i]['name'].split())
        colour = pick.choice([c for c in COLOURS if c != own])
        add(recoloured(pixels[i], COLOURS[colour]), (f'{colour} {name}', ''), rows[i]['style'])
    for _ in range(700):
        style = pick.choice(list(STYLES))
        a, b = pick.sample(by_style[style], 2)
        text = f'{name_of(rows[a], pick)} and a {name_of(rows[b], pick)}'
        add(beside([pixels[a], pixels[b]], *COUNTS['two']), (text, ''), style)
    for _ in range(500):
        i = pick.choice(pool)
        number = pick.choice(list(COUNTS))
        places, side = COUNTS[number]
        picture = beside([pixels[i]] * len(places), places, side)
        add(picture, (f'{number} {plural(rows[i]["name"])}', 'count'), rows[i]['style'])
    return torch.from_numpy(np.stack(out)), words


# ---- captions --------------------------------------------------------------------------------------------------

def weight(row):
    """How often a picture is drawn: what people ask for first has three times the passes of the rest."""
    return STYLES[row['style']] * (2.0 if row['name'] in ALSO or row['name'] in COMMON else 0.6)


def name_of(row, pick):
    names = ALSO.get(row['name'])
    return pick.choice(names) if names and pick.random() < 0.5 else row['name']


def caption(row, pick):
    """A caption of a picture. Without a style word it may be any style, mostly 3d and flat, which share a drawing."""
    style = row['style']
    if 'scene' in row:
        name, rest = row['scene']
        article = '' if rest == 'count' else 'a '
        tail = f' {rest}' if rest not in ('', 'count') else ''
    else:
        name, article, tail = name_of(row, pick), 'a ', ''
        colour = row.get('colour')
        if colour and pick.random() < 0.25 and not any(c in name.split() for c in COLOURS):
            name = f'{colour} {name}'
        if row['keywords'] and pick.random() < 0.08:
            tail = f', {pick.choice(row["keywords"])}'
        if pick.random() < 0.02:
            name, tail = (pick.choice(row['keywords']) if row['keywords'] else name), ''
    if article and name[0] in 'aeiou' and pick.random() < 0.8:
        article = 'an '
    plain = 0.5 if style == '3d' else 0.35 if style == 'flat' else 0.12
    if pick.random() < plain:
        return pick.choice((name + tail, f'{article}{name}{tail}', f'{article}{name}{tail}', f'an emoji of {article}{name}{tail}',
                            f'a picture of {article}{name}{tail}'))
    return pick.choice((f'{article}{style} {name}{tail}' if article != 'an ' else f'a {style} {name}{tail}', f'{style} {name}{tail}',
                        f'{article}{name}{tail}, {style}', f'{article}{name}{tail}, {style}', f'{article}{name}{tail}, {style} style',
                        f'{article}{name}{tail} in {style} style'))
