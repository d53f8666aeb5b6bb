"""The grammar of the captions of the demo data set.

Braces enclose alternatives (they nest), a ``<verb>`` is conjugated, words in capitals are rules. POSS becomes
his, her, its or their; SIDE left or right; CLOCK the sense of rotation to that side. Every phrase of an
action names what sets it apart from similar actions: the side, the direction, the amount.
"""

RULES = {
    "WALK": "{<walk>|<walk>|<stroll>|<amble>|<stride>|<pace>|<step>|<move>|<saunter>|<march>|<wander>|<go>}",
    "GO": "{<walk>|<walk>|<walk>|<stroll>|<move>|<step>|<march>|<pace>}",
    "AHEAD": "{forward|forward|forwards|ahead|straight ahead|straight forward|in a straight line|onward|"
             "straight on}",
    "FEW": "{a few|several|some|a couple of}",
    "SLOWLY": "{slowly|slowly|very slowly|at a slow pace|unhurriedly|leisurely|with slow steps|"
              "in a slow manner}",
    "FAST": "{fast|quickly|briskly|rapidly|at a fast pace|with quick steps|at a brisk pace|hurriedly|"
            "in a hurry}",
    "TURN": "{<turn>|<turn>|<turn>|<rotate>|<pivot>|<swivel>}",
    "SPIN": "{<turn>|<turn>|<rotate>|<spin>|<spin>|<twirl>|<whirl>|<pivot>}",
    "HERE": "{|| on the spot| in place| while standing}",
    "QUARTER": "{90 degrees|ninety degrees|a quarter turn|by 90 degrees|by a right angle|"
               "a quarter of a turn}",
    "HALF": "{180 degrees|one hundred eighty degrees|a half turn|half a turn|by 180 degrees|halfway around}",
    "FULL": "{360 degrees|a full turn|a full circle|all the way around|once around|a complete turn|"
            "one full rotation|by 360 degrees|completely around|three hundred sixty degrees}",
    "WAY": "{SIDE|SIDE|to the SIDE|to POSS SIDE|towards the SIDE|to POSS SIDE side|to the SIDE side}",
    "ROUND": "{SIDE|to the SIDE|to the SIDE|to POSS SIDE|CLOCK|CLOCK|in a CLOCK direction|to POSS SIDE side}",
    "MYHAND": "{POSS|POSS|the} SIDE {hand|hand|arm}",
    "MYFIST": "{POSS|POSS|the} SIDE {hand|fist|arm}",
    "MYLEG": "{POSS|POSS|the} SIDE {leg|foot}",
    "LIFT": "{<raise>|<raise>|<lift>|<lift>|<hold>|<put>|<extend>|<stretch>}",
    "UP": "{in the air|up high|above POSS head|overhead|over POSS head|up|high up|straight up|into the air}",
    "BOTH": "{both arms|both hands|both POSS arms|POSS arms|both of POSS arms|two arms}",
    "TWO": "{both arms|both hands|both POSS hands|both of POSS hands|two hands}",
    "PERFORM": "{<do>|<perform>|<make>}",
}

COUNTERCLOCKWISE = ("counterclockwise", "counterclockwise", "anticlockwise", "counter-clockwise",
                    "anti-clockwise")

# Action id (* stands for left and right): its phrases, separated by semicolons or new lines.
GRAMMAR = """
walk_forward: WALK AHEAD
    GO AHEAD{| at a normal pace| at a steady pace| at a regular speed| normally| casually}
    <take> FEW {steps|paces|strides} AHEAD; <walk>{| normally| casually| along| at a normal pace}
    <walk> FEW {steps|paces|meters} {forward|ahead}
walk_slow: GO AHEAD SLOWLY; GO SLOWLY AHEAD; <walk> SLOWLY
    {slowly|leisurely} {<walk>|<stroll>|<amble>|<pace>|<saunter>} {forward|ahead|straight ahead}
    {<creep>|<trudge>|<plod>|<dawdle>} {forward|ahead|along}{ slowly|}
    <take> slow {small |short |}steps {forward|ahead}
    <take> a {slow|leisurely} {walk|stroll} {forward|ahead|straight ahead}
walk_fast: GO AHEAD FAST; GO FAST AHEAD; <walk> FAST
    {quickly|briskly|rapidly} {<walk>|<stride>|<pace>|<march>} {forward|ahead|straight ahead}
    {<hurry>|<rush>|<power-walk>|<speed-walk>} {forward|ahead|straight ahead|along}{| on foot}
    <take> {fast|quick|rapid|brisk} {big |long |}steps {forward|ahead}
    <walk> {forward|ahead} with {fast|quick|brisk} {strides|steps}
walk_backward:
    GO {backward|backward|backwards|backwards|in reverse|rearward}{| in a straight line| a few steps}
    <back> {up|away}; <take> FEW steps {back|backward|backwards}; <retreat> {backward|backwards|a few steps}
    {<move>|<walk>|<step>} {back|backwards|backward}
    <walk> {in reverse|back without turning around|backward without turning}
walk_*: GO sideways WAY; <walk> sideways WAY; {<sidestep>|<sidestep>|<shuffle>|<side-step>} WAY
    <take> FEW {side steps|sideways steps|steps sideways} WAY; <step> {sideways |}WAY
    {<move>|<walk>|<shift>} {sidewards|laterally|sideways} WAY{| without turning}
    {<walk>|<step>} to {the|POSS} SIDE {while facing forward|sideways}; <take> steps to {the|POSS} SIDE side
walk_curve_*:
    GO {forward |}{in a curve|along a curve|in an arc|on a curved path} {to the|towards the|to POSS} SIDE
    {<curve>|<veer>|<bend>|<arc>} {to the |to POSS |}SIDE while walking{ forward|}
    GO {forward|ahead} {while|and} {curving|veering|turning gradually|bending} {to the |to POSS |}SIDE
    GO {forward |}and {gradually |}{<curve>|<veer>|<bend>} {to the |towards the |}SIDE
    GO around a {bend|corner} to the SIDE; <follow> a {curve|curved path|bend} to the SIDE{| on foot}
    GO in a {wide |gentle |}SIDE {curve|arc}; GO in a CLOCK {arc|curve}
    <make> a {wide|gentle|gradual|curved} SIDE turn while walking
walk_circle_*: GO {around |}in a {full |complete |whole |}circle ROUND
    GO in {a circle|circles|a round circle} ROUND; GO ROUND in a {full |complete |}{circle|loop}
    <circle> {|around }ROUND {on foot|while walking|at a walk}
    GO {in|along} a {circular path|loop|full circle|circle|ring} ROUND
    <make> a {full |complete |}circle ROUND {on foot|by walking|while walking}
    GO all the way around in a circle ROUND{| and <come> back to the start}
    <walk> {a circle|a full lap|a full circle|one round} ROUND
run_forward: {<run>|<run>|<jog>|<sprint>|<dash>} AHEAD; {<run>|<run>|<jog>}{| along| at speed| a few meters}
    {<go> for|<break> into} a {run|jog}{| straight ahead}
    <start> {running|to run} {forward|ahead|straight ahead}
    {<race>|<bolt>|<dart>} {forward|ahead|straight ahead}
turn_*_90: TURN QUARTER ROUND{HERE}; TURN ROUND QUARTER{HERE}
    <make> a {90 degree|ninety degree|quarter|90-degree} turn ROUND; <make> a SIDE turn{HERE}; TURN WAY{HERE}
    {<turn>|<pivot>} to face {the|POSS} SIDE{ side|}; {<do>|<take>} a quarter turn WAY
    <turn> POSS body QUARTER ROUND
turn_*_180: SPIN HALF ROUND{HERE}; SPIN ROUND HALF{HERE}
    <turn> around {over POSS SIDE shoulder|to the SIDE|by the SIDE|ROUND}
    <make> a {180 degree turn|half turn|180-degree turn|u-turn|turn of 180 degrees} ROUND
    PERFORM {an about-face|an about turn|a half turn|a 180} ROUND
    TURN ROUND to face {the opposite direction|the other way|backwards|the opposite way}
    TURN {around|right round|round} ROUND to {face the other way|look behind|face the opposite direction}
turn_*_360: SPIN FULL ROUND{HERE}; SPIN ROUND FULL{HERE}
    {<spin>|<twirl>|<whirl>|<rotate>} around {once ROUND|ROUND once|ROUND}
    <make> a {full|complete|360 degree|whole|360-degree} {turn|rotation|spin|circle} ROUND{HERE}
    PERFORM a {full|complete|360 degree|single} {spin|turn|twirl|pirouette} ROUND
    <turn> {all the way|completely|fully|right} around ROUND{HERE}
    SPIN in a {full |complete |}circle ROUND {on the spot|in place}; <spin> ROUND{HERE}
jump: <jump>{| up| up and down| in place| on the spot| into the air| in the air| upward| vertically}
    <jump> {up|into the air} {with both feet|off the ground|from both feet}
    <leap> {up|into the air|upwards|straight up}
    PERFORM {a vertical jump|a jump on the spot|a jump in place|a jump straight up}
    {<spring>|<bounce>} {up|into the air}{| on the spot}
jump_forward:
    {<jump>|<jump>|<leap>} {forward|forward|ahead|forwards|to the front}{| with both feet| with both legs}
    PERFORM a {forward jump|standing long jump|broad jump|jump forward|long jump|leap forward}
    {<jump>|<leap>} {over something|over an obstacle|across a gap} ahead
    {<spring>|<bound>} {forward|ahead}{| with both feet}
hop: <hop> on {one|one|a single} {leg|foot}
    <hop>{| up and down| in place| along} on {one leg|one foot|a single leg}; <stand> on one leg and <hop>
    <jump>{| up and down| repeatedly} on {one|a single} {leg|foot}
    <lift> one foot and <hop> on the other{| one| foot| leg}; {<bounce>|<skip>} on {one leg|one foot}
wave_*: <wave> {|hello |goodbye |hi }with MYHAND
    <wave> MYHAND{| in the air| back and forth| from side to side| to somebody| in greeting}
    {<raise>|<lift>} MYHAND and {<wave>|<wave> hello|<wave> it}
    <greet> {someone|somebody|a friend} {with a wave of|by waving|waving} MYHAND; <give> a wave with MYHAND
    <use> MYHAND to wave{| hello| goodbye}; {<say> hello|<say> goodbye|<signal>} by waving MYHAND
    <move> MYHAND from side to side in a wave
wave_both: <wave> {|hello |goodbye }with TWO
    <wave> TWO{| in the air| above POSS head| from side to side| back and forth}
    {<raise>|<lift>} TWO and <wave>{| them| hello}; <greet> someone {by waving|waving} TWO; <use> TWO to wave
    <signal> by waving TWO
raise_*: LIFT MYHAND UP; {<raise>|<lift>} MYHAND; {<put>|<hold>|<stick>} {up MYHAND|MYHAND up}
    <point> MYHAND {upward|upwards|to the sky|to the ceiling}; {<raise>|<lift>|<bring>} {up MYHAND|MYHAND up}
    <reach> {up|upward|for the sky|overhead} with MYHAND
    {<stretch>|<extend>} MYHAND {overhead|over POSS head|upwards|upward}
raise_both: LIFT BOTH UP; {<raise>|<lift>} TWO; {<put>|<hold>} {up TWO|TWO up}
    <reach> {up|for the sky|overhead|upward} with TWO
    <stretch> BOTH {overhead|upwards|to the sky|above POSS head}
    {<raise>|<lift>|<bring>} BOTH {over POSS head|above POSS head|overhead}
clap: <clap>{| POSS hands| with both hands| POSS hands together| in front of POSS chest}
    <clap> POSS hands{| together| in front of POSS body}; <applaud>{| with both hands}
    <give> {a round of applause|applause|some applause}
    {<bring>|<strike>|<slap>} POSS {hands|palms} together {in applause|repeatedly|to clap}
punch_*: <punch> with MYFIST; <punch> {forward|ahead|the air|straight ahead} with MYFIST
    <throw> a {SIDE punch|SIDE jab|punch with MYFIST|jab with MYFIST}
    {<strike>|<hit>|<jab>|<box>} {forward |ahead |the air |}with MYFIST
    <deliver> a {SIDE punch|punch with MYFIST|SIDE-handed punch}
    <thrust> POSS SIDE fist {forward|ahead|straight ahead}
    <make> a {punching|boxing} {motion|movement} with MYFIST
kick_*: <kick> with MYLEG; <kick> {forward|ahead|out|to the front|the air|something} with MYLEG
    <kick> MYLEG {out|forward|up|in front|ahead}
    {PERFORM|<deliver>} a {front kick|kick|forward kick} with MYLEG; <swing> MYLEG {forward |up |}in a kick
    <throw> a SIDE kick; <use> MYLEG to kick{| something| a ball}
squat: <squat>{| down| down and <stand> back up| on the spot}
    PERFORM {a squat|a squat exercise|a bodyweight squat}
    <crouch> down and {<get> back up|<rise> again|<come> back up}
    <bend> {POSS|both|the} knees {into a squat|and <squat> down|and <lower> POSS body into a squat}
    <lower> {|POSS body }into a squat{| and <rise> again| and <stand> up again}
    <go> down into a squat{| and back up}
sit_down: <sit> down{| on a chair| on a seat| on a stool| onto a chair}
    <sit> {on a chair|on a seat|on a stool|on a bench}; {<take>|<have>} a seat{| on a chair}
    {<lower>|<ease>} {POSS body onto a chair|POSS body into a seat|down into a chair}
    <go> from standing to sitting; <bend> POSS knees and <sit> down{| on a chair}
stand_up: <stand> up{| from a chair| from a seat| from sitting| from a seated position| from a stool}
    <get> up{| from a chair| from a seat| from a sitting position}
    <rise> {from a chair|from a seat|to POSS feet|from sitting|from a seated position}
    <get> {|up }to POSS feet; <go> from sitting to standing; <come> up from a {sitting|seated} position
bow: <bow>{| down| forward| at the waist| from the waist| politely| respectfully| to the audience}
    <take> a bow
    {<bend>|<lean>} {forward|over|down} {at the waist|from the waist|in a bow}{| and <straighten> up again}
    {<give>|<make>|<perform>} a {bow|polite bow|respectful bow}
    <bend> POSS upper body forward {in a bow|to bow}; <lower> POSS {head and torso|upper body|torso} in a bow
kneel: <kneel>{| down| on the floor| on the ground| down to the floor}
    <kneel> down {to|on} {the floor|the ground}
    <lower> {POSS body |}{into a kneeling position|down to kneel|to kneel}
    {<get>|<drop>|<sink>|<go>} down {to kneel|into a kneeling position}{| on the floor}
    {<move>|<go>} from standing to kneeling; <take> a kneeling position{| on the floor}
jumping_jacks: PERFORM {jumping jacks|jumping jacks|star jumps|some jumping jacks|a set of jumping jacks}
    <jump> POSS legs apart {while raising POSS arms|and <swing> POSS arms overhead}
    <exercise> {with|by doing} {jumping jacks|star jumps}
    <jump> {up and down |}{spreading|opening and closing} POSS arms and legs; <practice> jumping jacks
sway: <sway>{| from side to side| back and forth| left and right| gently| side to side}
    {<rock>|<swing>} {from side to side|side to side|left and right}
    <shift> POSS weight {from side to side|from one foot to the other|from foot to foot|left and right}
    <sway> {from left to right|to and fro|in place|on the spot}
    {<rock>|<sway>|<lean>} POSS body {from side to side|left and right}
    <move> POSS {hips|body} from side to side{| while standing}
"""

# What may be added when it is true of the clip. SIZES: {prefix of the action id: {size: phrases}}.
TEMPO = {"slow": "{slowly|slowly|at a slow speed|in slow motion|unhurriedly}",
         "fast": "{quickly|quickly|rapidly|fast|swiftly}"}
TIMES = {1: "{once|one time|a single time}", 2: "{twice|two times}", 3: "{three times|thrice}"}
NUMBERS = {4: "four", 5: "five", 6: "six", 7: "seven"}
SIZES = {
    "jump_forward": {"big": "{far|a long way|a long distance}", "small": "{a short distance|a little}"},
    "jump": {"big": "{high|very high|as high as possible}", "small": "{a little|slightly}"},
    "walk_circle": {"big": "{|with a wide radius}", "small": "{|with a tight radius}"},
    "wave": {"big": "{with big movements|widely|broadly}",
             "small": "{with small movements|a little|slightly}"},
    "kick": {"big": "{high|high in the air|up high}", "small": "{low|at a low height}"},
    "squat": {"big": "{deeply|very low}", "small": "{slightly|not very low|halfway}"},
    "bow": {"big": "{deeply|very low|low}", "small": "{slightly|a little}"},
}

SUBJECTS = (
    "a person", "a person", "a person", "a man", "a man", "a woman", "someone", "somebody", "the person",
    "the man", "the woman", "a human", "the figure", "a figure", "the character", "an actor", "a guy",
    "a lady", "the individual", "a boy", "a girl", "a stick figure", "he", "she", "they", "this person",
    "the human", "the subject", "the performer",
)
PRONOUNS = {"he": ("man", "guy", "boy", "he"), "she": ("woman", "lady", "girl", "she"),
            "it": ("figure", "character")}
POSSESSIVE = {"he": "his", "she": "her", "it": "its", "they": "their"}

# {s}: subject, {p}: its pronoun; {f} finite, {g} gerund, {b} base form of the phrase; 2: second action.
SINGLE = (
    "{s} {f}", "{s} {f}", "{s} {f}", "{s} {f}", "{s} {is_} {g}", "{s} {is_} {g}", "{s} {g}",
    "{s} starts to {b}", "{s} can be seen {g}", "{s} begins to {b}", "the motion shows {s} {g}",
    "we see {s} {g}", "{s} {is_} shown {g}",
)
DOUBLE = (
    "{s} {f}, then {f2}", "{s} {f}, then {f2}", "{s} {f} and then {f2}", "{s} {f} and then {f2}",
    "after {g}, {s} {f2}", "{s} first {f}, then {f2}", "first {s} {f}, then {p} {pf2}", "{s} {f} before {g2}",
    "{s} {f2} after {g}", "{s} {f}, and afterwards {p} {pf2}", "{s} {f} and {f2}",
    "{s} {f}, after that {p} {pf2}", "{s} {f} followed by {g2}", "{s} {is_} {g} and then {g2}",
    "{s} {g} and then {g2}", "{s} {f}, next {p} {pf2}", "{s} {f} and finally {f2}",
    "{s} starts by {g} and then {f2}", "once done {g}, {s} {f2}", "{s} {f}; then {p} {pf2}",
    "{s} {g}, then {g2}", "before {g2}, {s} {f}", "before {g2}, {s} {f}", "before {g2}, {s} {is_} {g}",
    "{s} {f2} after {g}",
)

# Part-of-speech tags of the words that are neither verbs nor nouns.
LEXICON = {
    "DET": "a an the this both some several one each",
    "ADP": "in on of to at by with from over above into around onto along towards for across off behind "
           "without after before",
    "PRON": "he she it they his her its their we them him someone somebody something",
    "AUX": "is are can be",
    "NUM": "90 180 360 two three four five six seven ninety hundred eighty sixty",
    "CONJ": "and then while",
    "ADJ": "slow fast quick brisk rapid big long short small left right full complete whole wide gentle "
           "gradual curved quarter single polite respectful seated broad low upper circular round opposite "
           "straight vertical normal steady",
    "ADV": "forward forwards ahead onward backward backwards rearward back up down sideways sidewards away "
           "overhead upward upwards together apart again once twice thrice first next finally afterwards "
           "very all clockwise counterclockwise anticlockwise counter-clockwise anti-clockwise halfway high "
           "far",
}
