"""Requests for pictures, files, recordings and pages, told from texts that mention one, in eight languages."""

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


@pytest.mark.parametrize("text", REQUESTS.strip().split("\n"))
def test_what_a_model_of_text_cannot_do_is_rejected(text: str) -> None:
    assert check_instruction(text, RULES) == "media_request"


@pytest.mark.parametrize("text", MENTIONS.strip().split("\n"))
def test_what_only_mentions_such_a_thing_is_kept(text: str) -> None:
    assert check_instruction(text, RULES) is None
