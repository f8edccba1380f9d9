"""Requests for pictures, files, recordings and pages, told from texts that mention one, in thirteen languages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.self_instruct.rules import PRESETS

RULES = replace(PRESETS["default"], min_words=1)
REQUESTS = """
Describe what the image shows.
Describe the picture.
Create a bar chart of the sales.
Draw a cat on a mat.
Draw me a sheep, please.
Look at the map and name the capital.
Watch the video and summarise it.
Go to https://x.org and read the page.
Visit the website of the bank.
Open the attached file and count the words.
Plot the function x squared.
Using the graph, find the mean.
What is happening in the picture?
Read this file and list its errors.
Please create an infographic about bees.
Identify the bird in this photo.
Record a short audio clip of you singing.
请画一只猫。
请描述这张图片。
生成一张关于春天的图片
请把这个file里的内容翻译成英文
打开这个网站并总结内容。
根据下面的图表回答问题。
制作一个关于环保的视频。
Zeichne eine Katze.
Erstelle ein Diagramm der Verkaufszahlen.
Beschreibe das Bild.
Was ist auf dem Bild zu sehen?
Öffne die Datei und zähle die Wörter.
Besuche die Website der Stadt.
Dessine un chat.
Crée une image d'un coucher de soleil.
Décris cette image.
Regardez la vidéo et résumez-la.
Visitez le site web de la ville.
Dibuja un gato.
Crea una imagen de un perro.
Describe la imagen.
Mira el video y resúmelo.
Visita el sitio web del banco.
Нарисуй кошку.
Создай изображение заката.
Опиши, что изображено на картинке.
Посмотри видео и перескажи его.
Перейди по ссылке и прочитай статью.
ارسم قطة جميلة.
أنشئ صورة لغروب الشمس.
صف الصورة التالية.
شاهد الفيديو ولخصه.
قم بزيارة الموقع واقرأ الأخبار.
この画像を説明してください。
猫の絵を描いてください。
売上のグラフを作成してください。
動画を見て要約してください。
このサイトにアクセスしてください。
"""
MENTIONS = """
Explain the plot of Hamlet in two sentences.
What is the plot of the novel?
Draw a conclusion from the following facts.
When should one go to a doctor?
Where would you go to on holiday?
Map each country to its capital.
Write a caption for a photo of a harbour.
Write a script for a short video about bees.
Suggest a file name for a report.
Explain the difference between a map and a globe.
What is graph theory?
Explain how a digital image is stored.
Write a poem about a picture frame.
What would you do to improve your self-image?
Draw up a plan for the week.
Who drew the line between the two countries?
Create a Python script that reads a file and prints each line.
Create a short biographical sketch of Nikola Tesla.
Sketch the outline of a wedding speech.
Make a table chart of the prices in plain text.
You cannot use this website for your work.
What does the phrase 'the big picture' mean?
Draw a comparison between cats and dogs.
How do I open a file in Python?
介绍一下地图的历史。
写一首关于画家的诗。
解释什么是文件系统。
Schreibe ein Gedicht über ein Bild von Monet.
Erkläre, was eine Grafikkarte ist.
Zieh einen Schluss aus den Angaben.
Explique la différence entre une carte et un globe.
Écris un poème sur une image de ton enfance.
Explica qué es un mapa conceptual.
Escribe un poema sobre una foto antigua.
Объясни, что такое файловая система.
Напиши стихотворение о картине.
اشرح الفرق بين الخريطة والكرة الأرضية.
اكتب قصيدة عن صورة قديمة.
地図の歴史を説明してください。
写真の撮り方のこつを三つ挙げてください。
List three file formats for music.
Make a list of figures of speech.
Make the sentence more vivid.
Provide a brief description of an image-based poem.
What is the purpose of a flowchart?
Write a short story about a lost map.
"""


# Draw a cat, look at the image below, open the file attached, summarise the article at an address.
SAME_REQUESTS = {
    "English": """
Draw a cat.
Look at the image below and name the animals.
Open the file attached and count its lines.
Summarise the article at https://example.org/news.html in one sentence.""",
    "German": """
Zeichne eine Katze.
Schau dir das Bild unten an und nenne die Tiere.
Öffne die Datei im Anhang und zähle die Zeilen.
Fasse den Artikel unter https://example.org/news zusammen.""",
    "French": """
Dessine un chat.
Regarde l'image ci-dessous et nomme les animaux.
Ouvrez le fichier joint et comptez les lignes.
Résume l'article disponible sur https://example.org/news.""",
    "Spanish": """
Dibuja un gato.
Mira la imagen de abajo y nombra los animales.
Abre el archivo adjunto y cuenta las líneas.
Resume el artículo de https://example.org/news en una frase.""",
    "Portuguese": """
Desenhe um gato.
Olhe para a imagem abaixo e diga os nomes dos animais.
Abra o arquivo anexo e conte as linhas.
Resuma o artigo em https://example.org/news em uma frase.""",
    "Italian": """
Disegna un gatto.
Guarda l'immagine qui sotto e nomina gli animali.
Apri il file allegato e conta le righe.
Riassumi l'articolo su https://example.org/news in una frase.""",
    "Russian": """
Нарисуй кошку.
Посмотри на картинку ниже и назови животных.
Открой прикреплённый файл и посчитай строки.
Кратко перескажи статью по адресу https://example.org/news.""",
    "Arabic": """
ارسم قطة.
انظر إلى الصورة أدناه واذكر أسماء الحيوانات.
افتح الملف المرفق وعد الأسطر.
لخص المقال الموجود على https://example.org/news في جملة واحدة.""",
    "Hindi": """
एक बिल्ली का चित्र बनाएं।
नीचे दी गई तस्वीर को देखें और जानवरों के नाम बताएं।
संलग्न फ़ाइल खोलें और पंक्तियाँ गिनें।
https://example.org/news पर दिए गए लेख का सारांश लिखें।""",
    "Thai": """
ช่วยวาดแมวหนึ่งตัว
ดูภาพด้านล่างแล้วบอกชื่อสัตว์
เปิดไฟล์ที่แนบมาแล้วนับจำนวนบรรทัด
สรุปบทความที่ https://example.org/news ในหนึ่งประโยค""",
    "Chinese": """
请画一只猫。
看下面的图片，说出动物的名字。
打开附件中的文件并统计行数。
请总结 https://example.org/news 上的文章。""",
    "Japanese": """
猫の絵を描いてください。
下の画像を見て、動物の名前を答えてください。
添付のファイルを開いて行数を数えてください。
https://example.org/news の記事を一文で要約してください。""",
    "Korean": """
고양이를 그려 주세요.
아래 이미지를 보고 동물의 이름을 말해 주세요.
첨부된 파일을 열어 줄 수를 세어 주세요.
https://example.org/news 의 기사를 한 문장으로 요약해 주세요.""",
}
# The plot of Hamlet, a conclusion, going to a doctor, how a picture is made, a poem about one, what a file is.
SAME_MENTIONS = {
    "English": """
Explain the plot of Hamlet.
Draw a conclusion from the survey results below.
Explain when to go to a doctor with a cough.
Map each country to its capital.
Plot twist ideas for a crime novel, please.
Write a story that begins with: picture this: a town without clocks.
Explain how to take good photos of birds.
Write a poem about an old photograph.
Explain what the https:// at the start of an address means.
Describe what a map of the London Underground leaves out.
Extract the domain from the address https://example.org/news.
Write an e-mail that invites customers to visit our website.
Create a vivid picture of daily life in ancient Rome, in words.
Classify the review: the sizes are smaller than in the chart, and I sent it back.
On a map, 1 cm stands for 5 km. How far apart are two towns that are 4 cm apart on the map?
Create a podcast episode outline about sleep.""",
    "German": """
Erkläre die Handlung von Hamlet.
Ziehe eine Schlussfolgerung aus den Ergebnissen.
Erkläre, wann man mit Husten zum Arzt gehen sollte.
Erkläre, wie man gute Fotos von Vögeln macht.
Schreibe ein Gedicht über ein altes Foto.
Erkläre, was eine Datei ist.""",
    "French": """
Explique l'intrigue de Hamlet.
Tire une conclusion des résultats.
Explique quand il faut aller chez le médecin.
Explique comment prendre de bonnes photos d'oiseaux.
Écris un poème sur une vieille photo.
Explique ce qu'est un fichier.""",
    "Spanish": """
Explica la trama de Hamlet.
Saca una conclusión de los resultados.
Explica cuándo hay que ir al médico.
Explica cómo se toman buenas fotos de aves.
Escribe un poema sobre una foto vieja.
Explica qué es un archivo.""",
    "Portuguese": """
Explique o enredo de Hamlet.
Tire uma conclusão dos resultados.
Explique quando se deve ir ao médico.
Explique como tirar boas fotos de pássaros.
Escreva um poema sobre uma fotografia antiga.
Desenhe um plano de estudos para um mês.
Explique o que é um arquivo.""",
    "Italian": """
Spiega la trama dell'Amleto.
Trai una conclusione dai risultati.
Spiega quando bisogna andare dal medico.
Spiega come si scattano belle foto di uccelli.
Scrivi una poesia su una vecchia foto.
Spiega che cos'è un file.""",
    "Russian": """
Объясни сюжет «Гамлета».
Сделай вывод из результатов.
Объясни, когда нужно идти к врачу.
Объясни, как делать хорошие фотографии птиц.
Напиши стихотворение о старой фотографии.
Объясни, что такое файл.""",
    "Arabic": """
اشرح حبكة مسرحية هاملت.
استخلص استنتاجا من النتائج.
اشرح متى يجب الذهاب إلى الطبيب.
اشرح كيفية التقاط صور جيدة للطيور.
اكتب قصيدة عن صورة قديمة.
اشرح ما هو الملف.""",
    "Hindi": """
हैमलेट की कहानी समझाएं।
परिणामों से निष्कर्ष निकालें।
बताएं कि खांसी होने पर डॉक्टर के पास कब जाना चाहिए।
पक्षियों के अच्छे चित्र बनाने का तरीका बताएं।
एक पुरानी तस्वीर के बारे में कविता लिखें।
फ़ाइल क्या होती है, समझाएं।""",
    "Thai": """
อธิบายโครงเรื่องของแฮมเลต
สรุปผลจากข้อมูลการสำรวจ
อธิบายว่าเมื่อไรควรไปหาหมอ
อธิบายวิธีถ่ายภาพนกให้สวย
เขียนบทกวีเกี่ยวกับภาพถ่ายเก่า
อธิบายภาพรวมของเศรษฐกิจไทยในรูปแบบย่อหน้า
เขียนบทวิจารณ์ภาพยนตร์เรื่องโปรด""",
    "Chinese": """
解释《哈姆雷特》的情节。
根据调查结果得出结论。
说明什么时候应该去看医生。
说明如何拍出好看的鸟类照片。
写一首关于老照片的诗。
解释什么是文件。""",
    "Japanese": """
『ハムレット』のあらすじを説明してください。
結果から結論を導いてください。
いつ医者に行くべきか説明してください。
鳥の写真を上手に撮る方法を教えてください。
古い写真についての詩を書いてください。
ファイルとは何か説明してください。""",
    "Korean": """
햄릿의 줄거리를 설명해 주세요.
결과에서 결론을 이끌어 내세요.
언제 병원에 가야 하는지 설명해 주세요.
새 사진을 잘 찍는 방법을 알려 주세요.
오래된 사진에 대한 시를 써 주세요.
파일이 무엇인지 설명해 주세요.
세계 지도에서 가장 큰 나라는 어디인가요?
고양이 그림 동화의 역사를 알려 주세요.""",
}


def of(texts: dict[str, str]) -> list[str]:
    return [text for lines in texts.values() for text in lines.strip().split("\n")]


@pytest.mark.parametrize("text", [*REQUESTS.strip().split("\n"), *of(SAME_REQUESTS)])
def test_what_a_model_of_text_cannot_do_is_rejected(text: str) -> None:
    assert check_instruction(text, RULES) == "media_request"


@pytest.mark.parametrize("text", [*MENTIONS.strip().split("\n"), *of(SAME_MENTIONS)])
def test_what_only_mentions_such_a_thing_is_kept(text: str) -> None:
    assert check_instruction(text, RULES) is None


def test_every_language_has_both() -> None:
    assert set(SAME_REQUESTS) == set(SAME_MENTIONS)
    assert all(len(lines.strip().split("\n")) == 4 for lines in SAME_REQUESTS.values())
