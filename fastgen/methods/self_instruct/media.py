"""Requests for pictures, files, recordings and web pages, told from texts that only mention one.

`asks_for_media` finds an instruction that asks a text model to make or look at such a thing: a verb with the thing as
its object ("Create a bar chart", "watch the video"), a thing that ought to be there and is not ("the attached file",
"in the picture", "this map"), or a text that is to be read at an address ("the article at https://..."). An instruction
that mentions one passes: "Explain the plot of Hamlet", "Write a caption for a photo of a harbour".

A language is a table of words: verbs that make, verbs that look, the things, and how the language points at something.
The languages are those whose labels an answer may use (`fields`): English, German, French, Spanish, Portuguese,
Italian, Russian, Arabic, Hindi, Thai, Chinese, Japanese and Korean. Where a pattern has to choose, it keeps the text: a
request that slips through costs one poor row, a rule that is too blunt removes a subject.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Final

_HEAD_OF_WORD: Final = re.compile(r"(?<!\w)\w{3,6}")
_URL: Final = r"[(<\[\"'“«]?(?:https?://\w|www\.\w)"
_WHOLE_URL: Final = rf"{_URL}[!-~]{{0,300}}+"  # bounded, so that a text of nothing but addresses costs linear time


def asks_for_media(text: str) -> bool:
    """Return whether ``text`` asks for a picture, a file, a recording or a visit to a page, in time linear in it."""
    lowered = text.lower()
    heads = _HEAD_OF_WORD.findall(lowered)
    if not _ALL_HEADS.isdisjoint(heads):
        for language in _BY_WORDS:
            if not language.hints.isdisjoint(heads) and language.finds_a_request(text):
                return True
    if text.isascii():
        return False
    return any(any(map(lowered.__contains__, one.hints)) and one.finds_a_request(text) for one in _BY_TEXTS)


class _Language:
    """The requests of one language: any of the ``patterns``, unless the text also matches ``but``.

    A text that matches holds one of the ``hints`` (words, or beginnings of words of up to six letters), so that most
    texts are decided without the pattern.
    """

    def __init__(self, hints: str, *patterns: str, but: re.Pattern[str] | None = None) -> None:
        self.hints = frozenset(hints.split()) | {f"{hint}s" for hint in hints.split()}
        self._patterns = patterns
        self._but = but

    @cached_property
    def _pattern(self) -> re.Pattern[str]:  # compiled when a text first has a hint: all of them would delay the start
        return re.compile("|".join(self._patterns), re.IGNORECASE | re.VERBOSE)

    def finds_a_request(self, text: str) -> bool:
        return self._pattern.search(text) is not None and (self._but is None or self._but.search(text) is None)


_EN_PICTURE: Final = (
    "image|picture|photo|photograph|screenshot|graph|chart|diagram|flow-?chart|histogram|scatter[ ]?plot|infographic"
    "|drawing|sketch|map"
)
_EN_RECORDING: Final = "video|video[ ]clip|audio|audio[ ]clip|audio[ ]file|recording|podcast|animation"
_EN_THING: Final = rf"(?:{_EN_PICTURE}|{_EN_RECORDING}|files?|pdf|spreadsheet|gif|meme|logo)s?"
# "image caption", "file name", "graph theory": the thing only says of what kind the next word is.
_EN_HEAD: Final = r"""(?![ -](?:captions?|captioned|descriptions?|titles?|scripts?|names?|naming|formats?|systems?
    |types?|extensions?|games?|ideas?|editor|editing|books?|frames?|theory|structure|database|algorithms?|prompts?
    |quality|processing|classification|recognition|compression|sharing|permissions?|paths?|topic|concept|essay|outlet
    |pack|out\b|of[ ](?:speech|argument)|whose|who|outlines?|episode[ ](?:outlines?|titles?|ideas?|descriptions?)
    |she|he|they)\b | ['’]s\b)(?!\w)"""
# Between a verb and its object stand articles and adjectives, but no word that begins another phrase or thing.
_EN_STOP: Final = r"""(?!(?:for|about|of|to|that|which|from|with|on|in|by|as|using|and|or|explaining|describing|titled
    |is|are|your|more|vivid|mental|clear|bigger|complete|accurate|script|scripts|caption|captions|description|title
    |story|poem|list|prompt|character|comedy|table|biographical|biography)\b)"""
_EN_BETWEEN: Final = rf"(?:[ ]{_EN_STOP}[\w'’-]++){{0,4}}?[ ]"
_EN_TOLD: Final = r"""(?:^|[.!?:;,"“(][ ]?|\b(?:and|then|please|must|should|(?:can|could|will|would)[ ]you|(?:asked
    |need|have|required|want[ ]you|like[ ]you)[ ]to)[ ])"""
_EN_CODE: Final = re.compile(
    r"(?<![\w./-])(?:script|functions? (?:that|to|which|in)|program|programme|code|command|python|bash|shell|java"
    r"|javascript|php|html|css|sql|query|c\+\+|c#|algorithm|regex|api|library|software|unix|linux)(?![\w/-])",
    re.IGNORECASE,
)
"""A text with one of these words, except inside an address, asks for code, whatever it does with files and pictures."""
_EN: Final = _Language(
    "image pictur photo photog screen graph chart diagra flow flowch histog scatte plot infogr draw drawin sketch"
    " doodle map video audio record podcas animat file pdf spread gif meme logo websit webpag web homepa link"
    " url http www",
    # make or change one
    rf"""{_EN_TOLD}(?:create|make|generate|produce|design|draw|sketch|paint|plot|build|develop|record|film|shoot|edit
    |upload|download|attach|save|send|export|open|insert|embed|share|post|show|display|provide|add|play|take|crop
    |resize|print|rename|delete|copy|compress|convert|scan){_EN_BETWEEN}{_EN_THING}{_EN_HEAD}""",
    # look at one
    rf"""\b(?:look(?:ing)?[ ]at|watch|listen[ ]to|view|describe|explain|analy[sz]e|interpret|summari[sz]e|caption
    |label|identify|examine|inspect|study|read|see|use|using|transcribe|translate|review|count|classify)[ ](?:the|this
    |these|each|following)[ ](?:(?!of\b|same\b)[\w-]++[ ]){{0,2}}?{_EN_THING}{_EN_HEAD}(?![ ]of\b)""",
    # one that ought to be there
    rf"""(?<![\w-])(?:this|these|following|attached|enclosed|above|below|accompanying|provided|uploaded
    |given)[ ](?:[\w-]++[ ])?{_EN_THING}{_EN_HEAD}""",
    # asked about: "What is in the picture?", but not "He put the town on the map" or "the girl in the video Jo made"
    rf"""(?:(?:^|[.!?:;,"“(][ ]?|\b(?:and|then)[ ])(?:what(?![ ]i\b)|which|who|where|how[ ](?:many|much))|\b(?:identify
    |describes?|lists?|name|label|find|summari[sz]e|count|classify|explain|tell|state|see|seen|visible|shown?|locate
    |point|translate|read|happen(?:s|ing|ed)|depicted|using|based))\b[^.!?:]{{0,80}}?[ ](?:in|from|on)[ ]the[ ]
    (?:{_EN_PICTURE}|{_EN_RECORDING})s?
    (?=[ ]*(?:[.,;:?!)]|$)|[ ](?:in|with|and|to|using|as|below|above|shown|are|is|do|does)\b)""",
    rf"""\bthe[ ]{_EN_THING}[ ](?:shows?|below|above|depicts?|provided|attached|enclosed)\b""",
    rf"""\bwhat[ ](?:the|this|an?)[ ](?:{_EN_PICTURE}|{_EN_RECORDING})[ ](?:shows?|depicts?)\b""",
    # draw and plot, but not a conclusion or the like
    rf"""{_EN_TOLD}(?:draw|sketch|doodle)(?:[ ]me)?[ ](?:an?|the|your|some|it|two|three|four|five|one|this|what
    |how)\b(?![ ](?:\w++[ ]){{0,2}}?(?:conclusions?|inferences?|comparisons?|parallels?|distinctions?|lessons?
    |attention|analog(?:y|ies)|connections?|links?|lines?|inspiration|contrasts?|curtains?|blood|bath|breath|crowd
    |implications?|correlations?|sword|cards?|number|name|winner|marbles?|balls?|differences?|readers?|most|best
    |outlines?|plans?|scenes?|characters?)\b)""",
    rf"""{_EN_TOLD}plot[ ](?:the|this|these|a|an|your)(?![ ](?:\w++[ ])?(?:of|twist|line|point|outline|summary|story
    |against|murder|escape|revenge|coup|course|hole)\b)""",
    # pages
    rf"""\b(?:go[ ]to|visit|open|browse|access|click(?:[ ]on)?|navigate[ ]to|check(?:[ ]out)?|follow)[ ](?:(?:the|this
    |that|these|your|a|following|any)[ ])*+(?:(?!our\b)[\w-]++[ ]){{0,1}}?(?:{_URL}|web[ ]?sites?\b|web[ ]?pages?\b
    |home[ ]?page\b|links?\b|urls?\b)""",
    r"""\b(?:summari[sz]e|read|review|appraise|critique|evaluate|improv(?:e|ing)|redesign|translate)[ ]
    (?:the[ ]\w++[ ]of[ ])?(?:this|the[ ](?:following|given|provided|linked))[ ](?:[\w-]++[ ])?
    (?:web[ ]?sites?|web[ ]?pages?|links?|urls?)\b""",
    r"\b(?:web[ ]?sites?|web[ ]?pages?|links?)[ ](?:below|above|provided|attached)\b",
    # a text that is to be read at its address
    rf"""\b(?:summari[sz]e|read|watch|listen[ ]to|paraphrase|translate|review(?![ ]of\b))[: ][^.!?]{{0,60}}?{_URL}""",
    rf"""\b(?:article|page|post|blog|site|website|video|story|paper|document|report|essay|study|recipe|news|content
    |information|text)s?[ ](?:[\w-]++[ ]){{0,2}}?(?:at|on|from|here|under|in|via)[: ]\s?{_URL}""",
    but=_EN_CODE,
)
_DE_THING: Final = (
    "bild(?:er|s|ern)?|fotos?|fotografien?|grafik(?:en)?|graph(?:en)?|diagramme?|schaubild|karte|landkarte"
    "|zeichnung(?:en)?"
    "|skizze|videos?|audio(?:datei)?|aufnahmen?|datei(?:en)?|pdf|tabelle[ ]als[ ]datei|infografik|logo|screenshots?"
)
_DE: Final = _Language(
    "bild bilder foto fotogr grafik graph graphe diagra schaub karte landka zeichn skizze skizzi video audio audiod"
    " aufnah datei dateie pdf tabell infogr logo screen male malen websit websei link url http www",
    rf"""\b(?:erstelle|erstellen|mache?|erzeuge|generiere|produziere|zeige?|speichere|öffne|lade|sende|schicke
    |gestalte|entwirf|füge|nimm|drehe?|exportiere|bearbeite|betrachte|beschreibe?n?|analysiere?n?|sieh|schau|höre?
    |erkläre|beschrifte)(?:\s(?:(?!über|für|von|zu|mit|um|auf|aus|in|und|oder|der|des|wie)\w++)){{0,4}}?(?:\s(?:die
    |dir|dieses|diese|das|ein|eine|einen|den))?+\s(?:{_DE_THING})\b""",
    r"""(?:^|[.!?:,]\s|\b(?:und|bitte)\s)(?:zeichnen?|malen?|skizzieren?)\s(?:mir\s|bitte\s)?(?:ein|eine|einen|das|den
    |die|mir)\b""",
    rf"""\b(?:auf|in|aus|zu|von|anhand|an)\s(?:dem|der|diesem|dieser|diesen|folgendem
    |folgender)\s(?:\w++en\s)?(?:{_DE_THING})\b""",
    rf"""\b(?:im|dieses|folgende[sn]?|angehängten?|beigefügten?|obige[sn]?)\s(?:{_DE_THING})\b""",
    r"""\b(?:datei(?:en)?|bild(?:er)?|foto|video|diagramm|grafik)\s(?:im\sanhang|unten|oben)\b""",
    rf"""\b(?:besuchen?|öffnen?|gehen?\s(?:auf|zu)|klicken?\sauf|rufen?)\s(?:\w++\s){{0,2}}?(?:{_URL}|webs(?:ite
    |eite)|link|url)""",
    rf"""\b(?:fass\w*|lies|lesen|übersetze?n?|schau\w*|sieh)\b[^.!?]{{0,60}}?{_URL}""",
)
_FR_THING: Final = (
    "images?|photos?|photographies?|dessins?|graphiques?|diagrammes?|schémas?|cartes?[ ](?:géographiques?|du"
    "|de[ ]la|des)|vidéos?"
    "|audios?|enregistrements?|fichiers?|pdf|logos?|captures?[ ]d['’]écran|infographies?"
)
_FR: Final = _Language(
    "image photo photog dessin graphi diagra schéma carte vidéo audio enregi fichie pdf logo captur infogr"
    " pein peigne peindr esquis site lien http www",
    rf"""\b(?:cré(?:e|ez|er)|fai(?:s|tes|re)|génér(?:e|ez|er)|produi(?:s|sez|re)|montr(?:e|ez|er)|affich(?:e|ez|er)
    |enregistr(?:e|ez|er)|ouvr(?:e|ez|ir)|télécharg(?:e|ez|er)|envoy(?:e|ez|er)|envoie|tournez?|conçoi(?:s|vez)
    |ajout(?:e|ez|er)|regard(?:e|ez|er)|écout(?:e|ez|er)|décri(?:s|vez|re)|analys(?:e|ez|er)|trac(?:e|ez
    |er))[ ](?:(?:moi|une?|des|les?|la|l['’]|cette|cet|ce|ces|belles?|petite?s?|simple
    |courte?)[ ]?){{0,3}}(?:{_FR_THING})\b(?![ ]de[ ](?:soi|marque))""",
    r"""(?:^|[.!?:,][ ]|\b(?:et|puis)[ ])(?:dessin(?:e|ez|er)|peins|peignez|esquiss(?:e|ez))[ ](?:-?moi[ ])?(?:une?
    |des|les?|la|l['’])""",
    rf"""\b(?:cette|ces|ce)[ ](?:{_FR_THING})\b|\b(?:sur|dans|d['’]après|à[ ]partir[ ]de)[ ](?:l['’]|la[ ]|le[ ]
    |cette[ ]|ce[ ])(?:{_FR_THING})\b""",
    rf"""\b(?:{_FR_THING})[ ](?:suivante?s?|ci-(?:dessous|jointe?|dessus)|jointe?s?)\b""",
    rf"""\b(?:visit(?:e|ez|er)|consult(?:e|ez|er)|ouvr(?:e|ez)|all(?:ez|er)[ ]sur|cliqu(?:e|ez)[ ]sur
    |va[ ]sur)[ ](?:\w++[ ]){{0,2}}?(?:{_URL}|site|page[ ]web|lien)""",
    rf"""\b(?:résum\w+|lis|lisez|lire|tradui\w+|regard\w+)\b[^.!?]{{0,60}}?{_URL}""",
)
_ES_THING: Final = (
    "im[aá]gen(?:es)?|fotos?|fotograf[ií]as?|dibujos?|gr[aá]fic[oa]s?|diagramas?|mapas?|v[ií]deos?|audios?"
    "|grabaci[oó]n(?:es)?"
    "|archivos?|ficheros?|pdf|logo(?:tipo)?s?|infograf[ií]as?|capturas?[ ]de[ ]pantalla"
)
_ES: Final = _Language(
    "imagen imágen foto fotogr dibuja dibuje dibujo gráfic grafic diagra mapa vídeo video audio grabac archiv ficher"
    " pdf logo logoti captur infogr pinta pinte pintar sitio página pagina enlace http www",
    rf"""\b(?:cre[ae]r?|haz|haga|hacer|gener[ae]r?|produ(?:ce|zca|cir)|mu[eé]str[ae](?:me)?|mostrar|dise[ñn][ae]r?
    |grab[ae]r?|abr[ea]|abrir|descarg(?:a|ue|ar)|env[ií][ae]r?|sub[ea]|guard[ae]r?|a[ñn]ad[ea]|mir[ae]r?|escuch[ae]r?
    |observ[ae]r?|describ[ea]|describir|analiz?[ac]e?r?)[ ](?:(?:una?|unos|unas|el|la|los|las|est[ea]|estos|estas
    |bonit[oa]|simple|breve|pequeñ[oa])[ ]){{0,3}}(?:{_ES_THING})\b""",
    r"""(?:^|[¡.!?:,][ ]?|\b(?:y|luego)[ ])(?:dibuj[ae](?:me)?|dibujar|pint[ae]|pintar)[ ](?:una?|el|la|los|las)\b""",
    rf"""\b(?:est[ea]|estos|estas)[ ](?:{_ES_THING})\b|\b(?:en|de|seg[uú]n)[ ](?:el|la|este
    |esta)[ ](?:{_ES_THING})\b(?![ ]de\b)""",
    rf"""\b(?:{_ES_THING})[ ](?:siguientes?|adjunt[oa]s?|anterior(?:es)?)\b|\bsiguientes?[ ](?:{_ES_THING})\b""",
    rf"""\b(?:visit[ae]r?|abr[ea]|entr[ae][ ]en|ve[ ]a|vaya[ ]a|ir[ ]a|consult[ae]
    |haz[ ]clic[ ]en)[ ](?:\w++[ ]){{0,2}}?(?:{_URL}|sitio[ ]web|p[aá]gina[ ]web|enlace)""",
    rf"""\b(?:resum\w+|lee|lea|leer|tradu[cz]\w+|mir[ae])\b[^.!?]{{0,60}}?{_URL}""",
)
_PT_THING: Final = (
    "imag(?:em|ens)|fotos?|fotografias?|desenhos?|gr[aá]ficos?|diagramas?|mapas?|v[ií]deos?|[aá]udios?"
    "|grava[cç](?:ão|ões)"
    "|arquivos?|ficheiros?|pdf|logo(?:tipo)?s?|infogr[aá]ficos?|capturas?[ ]de[ ](?:tela|ecrã)"
)
_PT: Final = _Language(
    "imagem imagen foto fotogr desenh desenho gráfic grafic diagra mapa vídeo video áudio audio gravaç arquiv fichei"
    " pdf logo logoti captur infogr pinte pintar esboce site página pagina link http www",
    rf"""\b(?:cri(?:e|a|ar)|fa(?:ça|z|zer)|ger(?:e|a|ar)|produz(?:a|ir)|mostr(?:e|a|ar)|exib(?:a|ir)|grav(?:e|ar)
    |abr(?:a|e|ir)|baix(?:e|ar)|envi(?:e|ar)|carreg(?:ue|ar)|salv(?:e|ar)|adicion(?:e|ar)|insir(?:a)|inserir|vej(?:a)
    |olh(?:e|a|ar)(?:[ ]para)?|assist(?:a|ir)|ouç(?:a)|escut(?:e|ar)|observ(?:e|ar)|descrev(?:a|er)|analis(?:e|ar)
    |edit(?:e|ar)|projet(?:e|ar))[ ](?:(?:uma?|uns|umas|o|a|os|as|à|ao|est[ea]s?|ess[ea]s?|bel[ao]|simples|breve
    |pequen[ao])[ ]){{0,3}}(?:{_PT_THING})\b""",
    r"""(?:^|[.!?:,][ ]|\b(?:e|depois)[ ])(?:desenh(?:e|a|ar)|pint(?:e|ar)|esbo(?:ce|çar))(?:-me)?[ ](?:uma?|o|a|os
    |as)\b(?![ ](?:planos?|conclus|estratégi|projeto|programa|paralelo|perfil|cenário))""",
    rf"""\b(?:est[ea]s?|ess[ea]s?)[ ](?:{_PT_THING})\b
    |\b(?:na[ ](?:imagem|foto|fotografia)|no[ ](?:vídeo|áudio|gráfico|desenho|diagrama|mapa|arquivo)
    |(?:nest[ea]|ness[ea])[ ](?:{_PT_THING}))\b(?![ ]d)""",
    rf"""\b(?:{_PT_THING})[ ](?:a[ ]seguir|abaixo|acima|anex[oa]s?|em[ ]anexo|seguintes?)\b
    |\bseguintes?[ ](?:{_PT_THING})\b""",
    rf"""\b(?:visit(?:e|ar)|acess(?:e|ar)|abr[ae]|entr[ae][ ](?:no|em)|vá[ ](?:ao|para)|consulte
    |clique[ ](?:no|em))[ ](?:\w++[ ]){{0,2}}?(?:{_URL}|site|página[ ]d|link)""",
    rf"""\b(?:resum\w+|leia|ler|traduz\w*|vej[ao])\b[^.!?]{{0,60}}?{_URL}""",
)
_IT_THING: Final = (
    "immagin[ei]|foto|fotografi[ae]|disegn[oi]|grafic[oi]|diagramm[ai]|mapp[ae]|cartin[ae]|video|audio"
    "|registrazion[ei]"
    "|file|pdf|logo|infografic\\w+|schermat[ae]"
)
_IT: Final = _Language(
    "immagi foto fotogr disegn disegna grafic diagra mappa mappe cartin video audio regist file pdf logo infogr scherm"
    " diping sito pagina link http www",
    rf"""\b(?:cre(?:a|are|i)|fai|fare|genera(?:re)?|produ(?:ci|rre)|mostra(?:mi|re)?|progetta(?:re)?|registra(?:re)?
    |apr(?:i|ire)|scarica(?:re)?|invia(?:re)?|carica(?:re)?|salva(?:re)?|aggiungi|inserisci|guarda(?:re)?
    |osserva(?:re)?|ascolta(?:re)?|descrivi|descrivere|analizza(?:re)?|modifica(?:re)?|realizza(?:re)?)[ ](?:(?:un[ao]?
    |il|lo|la|i|gli|le|quest[aoei]|bell[ao]|semplice|breve|piccol[ao])[ ]|un['’]|l['’]){{0,3}}(?:{_IT_THING})\b""",
    r"""(?:^|[.!?:,][ ]|\b(?:e|poi)[ ])(?:disegna(?:mi|re)?|dipingi|schizza)[ ](?:un[ao]?|il|lo|la|i|gli
    |le)\b(?![ ](?:piano|conclusion|strategia|paragon|parallel|profilo|scenario))""",
    rf"""\b(?:quest[aoei]|seguent[ei]|allegat[aoei])[ ](?:{_IT_THING})\b
    |\b(?:nell['’]|(?:nella|nel|sulla|sul)[ ])(?:{_IT_THING})\b(?![ ]d)""",
    rf"""\b(?:{_IT_THING})[ ](?:seguent[ei]|allegat[aoei]|qui[ ]sotto|in[ ]allegato|sottostant[ei]|sopra)\b""",
    rf"""\b(?:visita(?:re)?|apri|vai[ ](?:su|al|alla|a)|clicca[ ]su|consulta)[ ](?:(?:\w++|l['’])[ ]?){{0,2}}?(?:{_URL}
    |sito|pagina[ ]web|link)""",
    rf"""\b(?:riassum\w+|legg\w+|tradu\w+|guarda)\b[^.!?]{{0,60}}?{_URL}""",
)
_RU_THING: Final = (
    "изображени[еяюий]\\w*|картин(?:а|у|ы|е|ку|ка|ки|ке|ок)|фото\\w*|рисун(?:ок|ка|ке|ки)|график(?:а|е|и|у|ом)?"
    "|диаграмм\\w+|схем[аыуе]"
    "|карт[ауые]|видео\\w*|аудио\\w*|запис[ьи]|файл\\w*|логотип\\w*|скриншот\\w*|инфографик\\w+"
)
_RU: Final = _Language(
    "изображ картин фото рисун рису график диаграмм схем карт видео аудио запис файл логотип скриншот инфограф сайт"
    " ссылк страниц http www. нарис начерт",
    rf"""\b(?:созда(?:й|йте|ть)|сдела(?:й|йте|ть)|сгенерир\w+|покаж\w+|построй(?:те)?|построить|сними(?:те)?
    |запиши(?:те)?|открой(?:те)?|скачай(?:те)?|загрузи(?:те)?|отправь(?:те)?|сохрани(?:те)?|посмотри(?:те)?
    |рассмотри(?:те)?|послушай(?:те)?|опиши(?:те)?|проанализируй(?:те)?|прикрепи(?:те)?)(?:[ ](?!о\b|об\b|для\b|про\b
    |из\b|с\b|по\b)\w++){{0,3}}?(?:[ ]на)?[ ](?:{_RU_THING})\b""",
    r"""\b(?:нарисуй|нарисуйте|нарисовать|начерти|начертите|рисуй)\b""",
    r"""\b(?:на|в|из|по)[ ](?:(?:этом|этой|данн\w+|приложенн\w+)[ ])?(?:изображении|картинке|картине|фотографии|фото
    |рисунке|графике|диаграмме|карте|видео|файле|файла)\b""",
    rf"""\b(?:эт[ауо]|этот|следующ\w+|приложенн\w+|прикрепл[её]нн\w+)[ ](?:{_RU_THING})\b""",
    rf"""\b(?:зайди(?:те)?|перейди(?:те)?|посети(?:те)?|открой(?:те)?)[ ](?:\w++[ ]){{0,3}}?(?:{_URL}|сайт\w*
    |ссылк\w+|веб-?страниц\w+|страниц\w+)""",
    rf"""\b(?:прочита\w+|переска\w+|резюмир\w+|перевед\w+|излож\w+|кратко)\b[^.!?]{{0,60}}?{_URL}""",
)
_AR_THING: Final = (
    "(?:ال)?(?:صور[ةه]|صورا|صور|رسم[ا]?(?:ا)?[ ]?(?:بياني\\w*)?|مخطط\\w*|خريط[ةه]|خرائط|فيديو\\w*"
    "|مقطع(?:ا)?[ ](?:فيديو|صوتي\\w*)|تسجيل\\w*|ملف\\w*|شعارا?)"
)
_AR: Final = _Language(
    "صور رسم ارسم مخطط خريط خرائط فيديو مقطع تسجيل ملف شعار موقع رابط الرابط صفح http www.",
    rf"""(?<!\w)(?:[أا]نش[ئي]|[أا]نشاء|اصنع|صمم|ولّ?د|[أا]ظهر|اعرض|افتح|حمّ?ل|[أا]رسل|احفظ|سجّ?ل|شاهد|انظر[ ][إا]لى
    |استمع[ ][إا]لى|صف|حلّ?ل|[أا]رفق|قم[ ]ب[إا]نشاء|التقط)[ ](?:هذ[هاي][ ])?{_AR_THING}(?!\w)""",
    r"""(?<!\w)(?:ارسم|[أا]رسم|قم[ ]برسم)(?!\w)""",
    r"""(?<!\w)(?:في|من|على)[ ](?:هذ[هاي][ ])?ال(?:صور[ةه]|مخطط|خريط[ةه]|فيديو|ملف|رسم)(?!\w)
    |(?<!\w)هذ[هاي][ ]ال(?:صور[ةه]|مخطط|خريط[ةه]|فيديو|ملف|رسم)(?!\w)""",
    rf"""(?<!\w)(?:زر|قم[ ]بزيارة|افتح|اذهب[ ][إا]لى|انقر)[ ](?:\w++[ ]){{0,2}}?(?:{_URL}|(?:ال)?(?:موقع|رابط
    |صفح[ةه]))""",
    rf"""(?<!\w)(?:لخّ?ص|اقر[أا]|ترجم|قم[ ]بتلخيص)[ ][^.!?؟]{{0,60}}?{_URL}""",
)
_ZH_THING: Final = (
    "(?:图片|图像|图画|图表|图形|流程图|示意图|思维导图|柱状图|饼图|折线图|曲线图|照片|相片|插图|插画|海报|截图|地图"
    "|视频|音频|录音|录像|动画|文件|附件|file|pdf|logo)"
)
_ZH: Final = _Language(
    "图 照片 相片 海报 视频 音频 录音 录像 动画 文件 附件 file pdf logo 画 网站 网页 链接 网址 http www.",
    # Not "描述如何保存文件", which asks for a description.
    r"(?<!如何)(?<!怎么)(?<!怎样)(?:创建|生成|制作|绘制|设计|画出|画|拍摄|拍|录制|上传|下载|保存|打开|发送|播放|展示|显示|提供"
    r"|插入|编辑|做)(?:了|一下|出)?(?:[一这那该两三]?[个张幅份段部条些]|某个)?(?:关于[^，。,.！？!?;；:：\s]{1,10}?的)?"
    rf"(?:[^，。,.！？!?;；:：\s的为关于并和]{{0,6}}的?)?{_ZH_THING}(?!名|格式|系统|说明|标题|脚本|描述|管理|里面?怎)",
    r"(?:观看|查看|看看?|看一?下?|收听|聆听|描述|分析|识别|解释|解读|阅读|根据|基于|使用|给|把|将|对)(?:一下)?"
    rf"(?:下面|以下|给定|提供|上面|下列)?的?(?:[这那该][个张幅份段部条些]?){_ZH_THING}",
    r"(?:下面|以下|给定|上面|上述|附加|附上|所附|下列|提供)的?(?:[一这那]?[个张幅份段部条些])?"
    rf"{_ZH_THING}(?!名|格式|类型|系统)",
    rf"{_ZH_THING}(?:中的|里的|上的|中有|里有|上有|所示|中显示|内的)",
    r"(?:^|[，。,！!]|请|帮我|给我|并|再)画(?!面|家|画|龙|蛇|上句号|等号)",
    rf"(?:访问|打开|浏览|点击|进入)[^，。,.！？!?\s]{{0,10}}?(?:网站|网页|链接|网址|\s?{_URL})",
    rf"(?:总结|概括|概述|归纳|阅读|翻译|查看|读)[^。！？!?]{{0,30}}?{_URL}",
    rf"{_WHOLE_URL}\s?(?:上|里|中)?的(?:文章|内容|网页|新闻|报道|视频|信息)",
)
_JA_THING: Final = (
    "(?:画像|写真|イラスト|絵|図表|図|グラフ|チャート|フローチャート|地図|マップ|動画|ビデオ|音声|録音|音楽ファイル"
    "|アニメーション|ファイル|スクリーンショット|ロゴ|ポスター|pdf)"
)
_JA: Final = _Language(
    "画像 写真 イラスト 絵 図 グラフ チャート マップ 動画 ビデオ 音声 録音 アニメ ファイル スクリーン ロゴ ポスター pdf"
    " サイト ページ リンク url http www.",
    rf"(?:この|その|次の|以下の|添付の|添付された|上の|下の|与えられた|示された){_JA_THING}",
    rf"{_JA_THING}を(?:作成|作って|作り|作る|生成|描い|描き|描く|描写|書き出|撮影|撮って|録音|編集|アップロード"
    "|ダウンロード|保存|開い|開き|送|見て|見せ|聞い|聴い|表示|添付|デザイン|説明|分析|参照)",
    rf"{_JA_THING}(?:に写って|に描かれ|に示され|に映って|の中の|内の)",
    r"(?:サイト|ページ|リンク|url)(?:を|に|へ)(?:開い|訪問|訪れ|アクセス|クリック|閲覧|見て|参照)",
    rf"{_WHOLE_URL}\s?(?:にある|の(?:記事|内容|ページ|動画|文章|情報)|を(?:読|要約|翻訳|開|見)|にアクセス|から)",
)
_KO_THING: Final = (
    "(?:이미지|그림|사진|그래프|차트|도표|다이어그램|순서도|지도|동영상|비디오|영상|오디오|음성|녹음|첨부[ ]?파일|파일"
    "|로고|포스터|인포그래픽|스크린샷|애니메이션|일러스트|pdf)"
)
_KO: Final = _Language(
    "이미지 그림 그려 그리 사진 그래프 차트 도표 다이어 순서도 지도 영상 비디오 오디오 음성 녹음 파일 로고 포스터"
    " 인포그 스크린 애니메 일러스 pdf 사이트 페이지 링크 주소 url http www.",
    # Not "사진을 찍는 방법", which asks how it is done: those verbs end in "는" or "법".
    rf"{_KO_THING}(?:을|를|도)?\s?(?:(?:잘|자세히|직접|간단히)\s)?(?:그려|그리(?:세요|시오|고|십시오)|만들어|만드(?:세요|시오)"
    "|(?:생성|제작|디자인|편집|업로드|다운로드|저장|녹음|촬영|설명|묘사|분석|요약|참고|첨부)(?:해|하세요|하시오|하고|하여|하십시오)"
    "|열어|여세요|열고|보여|보내|보고|보세요|보시오|들어|듣고|들으세요|찍어)",
    rf"(?<![가-힣])(?:이|그|저|다음|아래(?:의|에\s있는)?|위(?:의)?|첨부된|첨부한|주어진|제시된|제공된)\s{_KO_THING}"
    "(?!\\s?(?:이름|형식|확장자|캡션|제목|시스템|이론))",
    r"(?:사진|그림|이미지|그래프|차트|도표|영상|비디오|파일)(?:에서|에\s(?:보이|나오|나온|있는|나타|표시|담긴)|\s?속에)",
    r"(?<!미래를\s)(?<!모습을\s)그(?:려\s?(?:줘|주세요|주십시오|라)|리(?:세요|시오|십시오))",
    rf"(?:사이트|홈페이지|페이지|링크|url|{_WHOLE_URL})(?:를|을|에|로|으로)?\s?(?:열어|열고|방문해|방문하|접속해|접속하|클릭해|클릭하"
    "|들어가|이동해|이동하|확인해|읽고|읽어)(?!\\s?(?:는|법))",
    rf"{_WHOLE_URL}\s?(?:의|에\s있는|에\s게시된|에서)\s",
)
_HI_THING: Final = (
    "(?:चित्र|तस्वीर|छवि|(?:\u095e|फ\u093c?)ोटो|ग्रा(?:\u095e|फ\u093c?)|चार्ट|आरेख|नक्श[ाे]|मानचित्र|वीडियो|ऑडियो"
    "|रिकॉर्डिंग|(?:\u095e|फ\u093c?)ाइल|लोगो|पोस्टर|स्क्रीनशॉट|इन्फोग्रा(?:\u095e|फ\u093c?)िक|पीडीएफ|pdf)"
)
_HI_DO: Final = "(?:ो|ओ|ें|एं|एँ|िए|इए|िये|इये|कर)"
_HI: Final = _Language(
    "चित्र तस्वीर छवि ोटो ग्रा चार्ट आरेख नक्श वीडियो ऑडियो रिकॉर्ड ाइल लोगो पोस्टर स्क्रीन इन्फो पीडीएफ pdf साइट पेज लिंक"
    " http www.",
    # The verb follows: "बिल्ली का चित्र बनाएँ". Not "चित्र बनाने का तरीका", which asks how it is done.
    rf"{_HI_THING}\s(?:(?:को|का|की|के\sबारे)\s)?(?:(?:बना|खींच|देख|खोल|भेज|सुन|दिखा|सहेज|पढ़)\u094d?{_HI_DO}"
    rf"|(?:तैयार|अपलोड|डाउनलोड|संलग्न|डिज़ाइन|डिजाइन|वर्णन|विश्लेषण|संपादित)\sकर{_HI_DO})",
    rf"(?:^|\s)(?:इस|उस|इन|निम्नलिखित|निम्न|संलग्न|(?:(?:नीचे|ऊपर)\s)?(?:दिए|दी)\s(?:गए|गई))\s{_HI_THING}(?=[\s।,?!.]|$)",
    rf"{_HI_THING}\s(?:में|पर|से)\s(?:क्या|कौन|कितन|दिख|दर्शा)",
    rf"(?:साइट|पेज|लिंक|{_WHOLE_URL})\s(?:(?:पर|को)\s)?(?:जा{_HI_DO}|खोल{_HI_DO}|क्लिक|देख{_HI_DO})",
    rf"{_WHOLE_URL}\s(?:पर|का|के|की|को|में|से)\s",
)
_TH_THING: Final = (
    "(?:รูปภาพ|ภาพถ่าย|ภาพวาด|ภาพ(?!ยนตร์|รวม|ลักษณ์|พจน์|ลวง|ฝัน)|รูป(?!แบบ|ธรรม|ร่าง|ทรง)|กราฟ(?!ิก)|แผนภูมิ|แผนภาพ|ผังงาน"
    "|แผนที่|วิดีโอ|วีดีโอ|คลิป|ไฟล์|โลโก้|โปสเตอร์|อินโฟกราฟิก|สกรีนช็อต|pdf)"
)
_TH: Final = _Language(
    "ภาพ รูป กราฟ แผน ผังงาน วิดีโอ วีดีโอ คลิป ไฟล์ โลโก้ โปสเตอร์ อินโฟ สกรีน วาด เว็บ ลิงก์ ลิงค์ pdf http www.",
    rf"(?<!วิธี)(?<!วิธีการ)(?<!การ)(?:วาด|สร้าง|ทำ|ออกแบบ|เปิด|ดาวน์โหลด|อัปโหลด|ส่ง|บันทึก|ดู|อธิบาย|บรรยาย|วิเคราะห์|แสดง|ถ่าย"
    rf"|แก้ไข|สรุป)(?:ที่)?{_TH_THING}",
    rf"{_TH_THING}\s?(?:นี้|ต่อไปนี้|ด้านล่าง|ด้านบน|ข้างล่าง|ข้างต้น|ที่แนบ|แนบ|ที่ให้มา|ที่กำหนด)",
    r"ใน(?:รูปภาพ|ภาพถ่าย|ภาพ(?!ยนตร์|รวม|ลักษณ์)|รูป(?!แบบ)|กราฟ(?!ิก)|แผนภูมิ|วิดีโอ|คลิป)",
    r"(?:^|\s|ช่วย|กรุณา|โปรด|จง|และ|แล้ว)วาด(?!ฝัน|หวัง|ระแวง)",
    rf"(?<!วิธี)(?:เข้าไปที่|เข้าชม|เข้า|เปิด|ไปที่|เยี่ยมชม|คลิก|กด)(?:ที่)?(?:เว็บ|ลิงก์|ลิงค์|หน้าเว็บ|\s?{_URL})",
    rf"(?:สรุป|อ่าน|แปล|ดู)[^.!?]{{0,60}}?{_URL}",
)
_BY_WORDS: Final = (_EN, _DE, _FR, _ES, _PT, _IT)
_ALL_HEADS: Final = frozenset().union(*(language.hints for language in _BY_WORDS))
_BY_TEXTS: Final = (_RU, _AR, _HI, _TH, _ZH, _JA, _KO)
