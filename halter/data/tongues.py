"""Names of columns in other languages than English: German, French, Spanish, Italian, Portuguese, Chinese."""

from __future__ import annotations

ASKING = (
    "frage", "aufgabe", "anweisung", "eingabe", "consigne", "entree", "entrée", "requete", "requête", "pregunta",
    "instruccion", "instrucción", "consulta", "entrada", "domanda", "istruzione", "richiesta", "pergunta", "instrucao",
    "instrução", "问题", "提问", "指令", "输入",
)  # fmt: skip
ANSWERING = (
    "antwort", "ausgabe", "loesung", "lösung", "ergebnis", "reponse", "réponse", "sortie", "respuesta", "salida",
    "solucion", "solución", "risposta", "uscita", "soluzione", "resposta", "saida", "saída", "solucao", "solução",
    "答案", "回答", "回复", "输出",
)  # fmt: skip
NO_TEXT = frozenset({
    "quelle", "herkunft", "sprache", "datum", "kategorie", "fuente", "origen", "idioma", "fecha", "categoria", "fonte",
    "lingua", "data", "langue", "categorie", "catégorie", "来源", "语言", "日期", "类别",
})  # fmt: skip
"""Words of columns that are about a row and not in it."""
