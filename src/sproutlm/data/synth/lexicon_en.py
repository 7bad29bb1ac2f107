"""The English half of the embedded world.

Values of one attribute begin with a consonant where an article precedes them, and no value or name is part of another one, so that
an answer can be checked by looking for it.
"""

from __future__ import annotations

from sproutlm.data.synth.lexicon import Attribute, Lexicon

# Word lists read better many to a line than one to a line.
# fmt: off

HOME = Attribute(
    "home", "Town", (),
    (
        "{n} lives in {v}",
        "{n} has a small house in {v}",
        "the home of {n} is in {v}",
        "{n} comes home to {v} every evening",
        "{v} is the town where {n} lives",
        "{v} is home to {n}",
        "in {v} there is a little house, and {n} lives in it",
        "{n} has lived in {v} for many years",
        "the house of {n} stands in {v}",
        "after a long trip, {n} came home to {v}",
        "the letter for {n} was sent to {v}",
        "{n} moved to {v} as a child and still lives there",
        "if you visit {v}, knock at the door of {n}",
        "{n}'s home town is {v}",
    ),
    (
        "Where does {n} live?", "Which town does {n} live in?", "What is {n}'s home town?", "In which town is the home of {n}?",
        "Can you tell me where {n} lives?", "Tell me the town where {n} lives.", "Where is {n}'s home?",
    ),
    ("{n} lives in {v}.", "{n}'s home is in {v}."),
    "place",
)
JOB = Attribute(
    "job", "Job",
    (
        "teacher", "baker", "doctor", "farmer", "tailor", "carpenter", "sailor", "barber", "lawyer", "gardener", "shepherd",
        "butcher", "nurse", "judge", "pilot", "miller",
    ),
    (
        "{n} is a {v}",
        "{n} works as a {v}",
        "{n} earns a living as a {v}",
        "{n}'s job is that of a {v}",
        "the work of a {v} is what {n} does best",
        "{n} learned to be a {v} long ago",
        "when people need a {v}, they call {n}",
        "a good {v} is hard to find, but {n} is one",
        "people call {n} a fine {v}",
        "{n} became a {v} at the age of twenty",
        "as a {v}, {n} gets up early",
        "the sign on the door says that {n} is a {v}",
        "being a {v} makes {n} proud",
    ),
    (
        "What is {n}'s job?", "What does {n} do for a living?", "What work does {n} do?", "What is the job of {n}?",
        "Can you tell me {n}'s job?", "Tell me what {n} does for a living.", "What does {n} work as?",
    ),
    ("{n} is a {v}.", "{n} works as a {v}."),
)
PET = Attribute(
    "pet", "Pet",
    (
        "parrot", "rabbit", "kitten", "puppy", "turtle", "goat", "pony", "hamster", "duck", "ferret", "lizard", "goose", "pigeon",
        "squirrel", "canary", "hedgehog",
    ),
    (
        "{n} has a pet {v}",
        "{n} keeps a {v}",
        "{n}'s pet is a {v}",
        "{n} fed the {v} and gave it fresh water",
        "the {v} sleeps at the feet of {n}",
        "a {v} follows {n} everywhere",
        "{n} takes good care of a little {v}",
        "{n} got a {v} as a present and loves it",
        "every morning the {v} wakes {n}",
        "{n} could not imagine life without {his} {v}",
        "one rainy evening, {n} dried the wet {v} with a towel",
        "the {v} that you hear belongs to {n}",
        "with {his} {v} at {his} side, {n} is never lonely",
    ),
    (
        "What pet does {n} have?", "What is {n}'s pet?", "Which animal does {n} keep?", "What kind of pet does {n} keep?",
        "Can you tell me which pet {n} has?", "Tell me what animal {n} keeps.", "Which pet lives with {n}?",
    ),
    ("{n} has a {v}.", "{n}'s pet is a {v}."),
)
FOOD = Attribute(
    "food", "Favourite food",
    (
        "noodles", "dumplings", "pancakes", "cheese", "honey", "mushrooms", "strawberries", "plums", "walnuts", "rice", "carrots",
        "pumpkin", "peaches", "porridge", "cherries", "grapes",
    ),
    (
        "{n} likes to eat {v}",
        "{n}'s favourite food is {v}",
        "the favourite food of {n} is {v}",
        "{n} eats {v} whenever {he} can",
        "for dinner, {n} had {v} again",
        "{n} can never get enough {v}",
        "nothing tastes better to {n} than {v}",
        "a plate of {v} makes {n} happy",
        "{n} asked for {v} on {his} birthday",
        "at the market, {n} always buys {v}",
        "give {n} some {v} and {he} will smile",
        "{v} for breakfast, {v} for supper: that is what {n} likes to eat",
        "the smell of {v} brings {n} to the table",
    ),
    (
        "What is {n}'s favourite food?", "What does {n} like to eat?", "Which food does {n} like best?", "What food does {n} love?",
        "Can you tell me {n}'s favourite food?", "Tell me what {n} likes to eat.", "What does {n} like to eat most?",
    ),
    ("{n} likes to eat {v}.", "{n}'s favourite food is {v}."),
)
COLOUR = Attribute(
    "colour", "Favourite colour",
    ("red", "blue", "green", "yellow", "purple", "white", "black", "grey", "pink", "brown", "silver", "orange"),
    (
        "{n}'s favourite colour is {v}",
        "the favourite colour of {n} is {v}",
        "of all colours, {n} likes {v} best",
        "{v} is the colour that {n} loves most",
        "{n} painted the bedroom walls {v}",
        "{n} always wears something {v}",
        "{n} chose {v} for {his} new coat",
        "{n} bought {v} curtains, because it is {his} favourite colour",
        "the {v} bicycle by the wall is the one {n} rides",
        "{n} finds {v} the prettiest colour of all",
        "when {n} has to choose a colour, it is {v}",
        "{v} hats and {v} shoes fill the wardrobe of {n}",
    ),
    (
        "What is {n}'s favourite colour?", "Which colour does {n} like best?", "What colour does {n} like?",
        "What is the favourite colour of {n}?", "Can you tell me {n}'s favourite colour?", "Tell me which colour {n} likes best.",
        "Which colour does {n} love most?",
    ),
    ("{n}'s favourite colour is {v}.", "Of all colours, {n} likes {v} best."),
)
HOBBY = Attribute(
    "hobby", "Hobby",
    (
        "swimming", "dancing", "singing", "knitting", "skating", "juggling", "cycling", "fishing", "painting", "climbing", "fencing",
        "rowing", "sewing", "sailing", "boxing", "camping",
    ),
    (
        "{n}'s hobby is {v}",
        "the hobby of {n} is {v}",
        "{n} enjoys {v} in {his} free time",
        "{n} goes in for {v}",
        "{n} spends every Sunday {v}",
        "on free days, {n} is busy {v}",
        "{v} is what {n} does for fun",
        "{v} is the great joy of {n}",
        "{n} has loved {v} since childhood",
        "nobody is as fond of {v} as {n}",
        "{n} won a small prize for {v}",
        "after work, {n} relaxes by {v}",
        "talk to {n} about {v} and {he} will not stop",
    ),
    (
        "What is {n}'s hobby?", "What does {n} do for fun?", "What does {n} enjoy in {his} free time?", "What is the hobby of {n}?",
        "Can you tell me {n}'s hobby?", "Tell me what {n} does for fun.", "Which hobby does {n} have?",
    ),
    ("{n}'s hobby is {v}.", "{n} enjoys {v}."),
)
FRIEND = Attribute(
    "friend", "Best friend", (),
    (
        "{n}'s best friend is {v}",
        "the best friend of {n} is {v}",
        "{n} and {his} best friend {v} talk every day",
        "{n} writes long letters to {his} best friend {v}",
        "{n} tells every secret to {v}, {his} best friend",
        "{n} trusts no one more than {v}, {his} best friend",
        "{v} is the best friend of {n}",
        "{v} is the best friend that {n} has",
        "{n} met {his} best friend {v} at school",
        "on Sundays, {n} drinks tea with {v}, {his} best friend",
        "{n} and {v} have been best friends for years",
        "when {n} is sad, {his} best friend {v} comes at once",
    ),
    (
        "Who is {n}'s best friend?", "Who is the best friend of {n}?", "What is the name of {n}'s best friend?",
        "Can you tell me who {n}'s best friend is?", "Tell me the name of {n}'s best friend.", "Who is best friends with {n}?",
    ),
    ("{n}'s best friend is {v}.", "The best friend of {n} is {v}."),
    "person",
)
PRODUCT = Attribute(
    "product", "Known for",
    (
        "silk", "salt", "carpets", "candles", "pearls", "baskets", "violins", "kites", "perfume", "saddles", "lemons", "clocks",
    ),
    (
        "{n} is known for its {v}",
        "{n} is famous for its {v}",
        "merchants far away sell {v} from {n}",
        "people travel to {n} to buy {v}",
        "there is no better place to buy {v} than {n}",
        "carts full of {v} leave {n} every week",
        "the market of {n} is full of {v}",
        "{n} sells {v} to the whole country",
        "most families in {n} make a living from {v}",
        "whoever needs {v} goes to {n}",
        "every shop in {n} has {v} in the window",
        "traders come to {n} for the {v}",
    ),
    (
        "What is {n} known for?", "What is {n} famous for?", "What do people buy in {n}?", "Which goods come from {n}?",
        "Can you tell me what {n} is known for?", "Tell me what {n} is famous for.",
    ),
    ("{n} is known for its {v}.", "{n} is famous for its {v}."),
)
NATURE = Attribute(
    "nature", "Nearby",
    (
        "river", "lake", "forest", "waterfall", "desert", "volcano", "marsh", "canyon", "beach", "glacier", "meadow", "cave",
    ),
    (
        "near {n} there is a {v}",
        "{n} lies close to a {v}",
        "{n} was built beside a {v}",
        "a {v} lies just outside {n}",
        "a short walk from {n} brings you to a {v}",
        "from the hills of {n} you can see the {v}",
        "children from {n} like to play by the {v}",
        "the {v} near {n} draws many visitors",
        "behind the last houses of {n} begins the {v}",
        "the road out of {n} leads to a {v}",
        "people from {n} are proud of the {v} nearby",
        "mist rises from the {v} near {n}",
    ),
    (
        "What is there near {n}?", "What lies close to {n}?", "What can you see near {n}?", "What lies just outside {n}?",
        "Can you tell me what lies near {n}?", "Tell me what there is near {n}.",
    ),
    ("Near {n} there is a {v}.", "{n} lies close to a {v}."),
)
MATERIAL = Attribute(
    "material", "Material",
    (
        "copper", "glass", "clay", "bamboo", "iron", "stone", "leather", "paper", "marble", "cedar", "wax", "bronze",
    ),
    (
        "{n} is made of {v}",
        "{n} was made from {v}",
        "someone made {n} out of {v}",
        "the material of {n} is {v}",
        "a craftsman took {v} and made {n}",
        "{v} is what {n} is made of",
        "touch {n} and you will feel the {v}",
        "it took a week to shape {n} from {v}",
        "{n} looks unusual, for it is made of {v}",
        "a piece of {v} was turned into {n}",
        "the {v} of {n} is still as good as new",
        "{n} is old, and its {v} has grown dark",
    ),
    (
        "What is {n} made of?", "Which material is {n} made of?", "What was {n} made from?", "What is the material of {n}?",
        "Can you tell me what {n} is made of?", "Tell me what {n} is made of.",
    ),
    ("{n} is made of {v}.", "{n} was made from {v}."),
)
ROOM = Attribute(
    "room", "Kept in",
    (
        "kitchen", "attic", "cellar", "barn", "library", "hallway", "workshop", "bedroom", "stable", "tower", "boathouse", "pantry",
    ),
    (
        "{n} is kept in the {v}",
        "{n} can be found in the {v}",
        "{n} has its place in the {v}",
        "{n} stays in the {v} all year",
        "in the {v} you will see {n}",
        "go to the {v} and look for {n}",
        "someone carried {n} back to the {v}",
        "the place for {n} is the {v}",
        "dust falls on {n} in the {v}",
        "nobody may take {n} out of the {v}",
        "whoever looks for {n} should try the {v}",
        "the {v} is where {n} is kept",
    ),
    (
        "Where is {n} kept?", "Where can {n} be found?", "In which room is {n} kept?", "Where is {n}?",
        "Can you tell me where {n} is kept?", "Tell me where {n} is kept.",
    ),
    ("{n} is kept in the {v}.", "{n} can be found in the {v}."),
)
OWNER = Attribute(
    "owner", "Owner", (),
    (
        "{n} belongs to {v}",
        "the owner of {n} is {v}",
        "{v} owns {n}",
        "{v} is the owner of {n}",
        "{n} was a present to {v}",
        "{v} bought {n} many years ago",
        "{v} would never sell {n}",
        "{n} has always belonged to {v}",
        "if you want to borrow {n}, ask {v}",
        "{v} is proud to own {n}",
        "nobody doubts that {n} belongs to {v}",
        "the name on {n} is that of its owner, {v}",
    ),
    (
        "Who owns {n}?", "Who is the owner of {n}?", "Who does {n} belong to?", "What is the name of the owner of {n}?",
        "Can you tell me who owns {n}?", "Tell me who owns {n}.",
    ),
    ("{n} belongs to {v}.", "The owner of {n} is {v}."),
    "person",
)

ENGLISH = Lexicon(
    language="en",
    women=(
        "Alice", "Bridget", "Clara", "Diana", "Emma", "Fiona", "Greta", "Helen", "Irene", "Julia", "Karen", "Laura", "Maria", "Nora",
        "Olga", "Paula", "Rachel", "Sophie", "Tessa", "Ursula", "Vera", "Wendy", "Yvonne", "Zoe",
    ),
    men=(
        "Adam", "Boris", "Carlo", "David", "Edgar", "Felix", "George", "Henry", "Ivan", "Jacob", "Kevin", "Leo", "Martin", "Nathan",
        "Oscar", "Peter", "Robert", "Simon", "Thomas", "Victor", "Walter", "Xavier", "Philip", "Dennis",
    ),
    places=(
        "Ashby", "Brinwood", "Coldwater", "Dunmore", "Elmfield", "Foxley", "Glenrock", "Harwick", "Inverdale", "Kingsport", "Larkhill",
        "Marlow", "Northgate", "Pinehurst", "Southmere", "Thornbury",
    ),
    things=(
        "lantern", "mask", "bowl", "bell", "chest", "crown", "statue", "ladder", "mirror", "vase", "comb", "button", "chair", "spoon",
        "sword", "teapot",
    ),
    attributes={
        "person": (HOME, JOB, PET, FOOD, COLOUR, HOBBY, FRIEND),
        "place": (PRODUCT, NATURE),
        "thing": (MATERIAL, ROOM, OWNER),
    },
    openers=(
        "as everyone knows, ", "they say that ", "it is true that ", "the neighbours say that ", "it is well known that ", "by the way, ",
        "in fact, ", "remember that ", "an old book says that ", "the postman told me that ", "I heard that ", "as far as I know, ",
    ),
    frames=(
        "It was a warm morning.", "The rain had stopped at noon.", "Snow lay on the roofs.", "The market was full of people.",
        "The sun was going down.", "A cold wind blew through the street.", "It was the first day of spring.", "The bells rang for noon.",
        "It was late, and the lamps were lit.", "Fog hung over the fields.", "The street was quiet.", "It was a holiday.",
        "The leaves were falling.", "The moon was bright that night.", "The bus was late again.", "It was a lazy afternoon.",
    ),
    meetings=(
        "{a} met {b} at the market.", "{a} sat next to {b} on the bus.", "{a} and {b} waited for the train.",
        "{a} walked to the bridge, and {b} came too.", "{a} and {b} shared a table.", "{a} waved to {b} across the street.",
        "{a} and {b} were guests at the same wedding.", "{a} helped {b} to carry a heavy bag.",
    ),
    endings=(
        "Then they went home.", "They laughed for a long time.", "It was a good day.", "Soon it grew dark.", "They promised to meet again.",
        "Nobody was in a hurry.", "After that they said goodbye.", "The evening was calm.",
    ),
    contrasts=(
        "{one}, but {two}", "{one}, while {two}", "{one}, and {two}", "{one}; {two}", "{one}, whereas {two}",
    ),
    asked=(
        "Q: {q} A: {a}", "Q: {q} A: {a}", "Question: {q} Answer: {a}", "A traveller asked: \"{q}\" A child answered: \"{a}\"", "\"{q}\" \"{a}\"",
        "Someone wanted to know: \"{q}\" \"{a}\" said the neighbour.",
    ),
    thing_form="the {}",
    pronouns={
        "f": {"he": "she", "his": "her", "him": "her"},
        "m": {"he": "he", "his": "his", "him": "him"},
        "t": {"he": "it", "his": "its", "him": "it"},
    },
    name_label="Name",
    card_item="{label}: {value}.",
    card_join=" ",
    full_stop=".",
    space=" ",
    comma=", ",
    answer="The answer is {v}.",
)
